//! Dead ends: find the door that leads to G. The edges are given in any order, and a model of this size cannot look
//! ahead along all of them, so the first door is right only by chance, with probability one over the number of doors.
//!
//! Uncertainty at the choice of a door is functional: retries must differ. Going back after a dead end is worth its
//! tokens; the same words after G was found are not.
//!
//! ```text
//! 1 k m t. Hmm, dead end. Let me go back. 2 p r G. Found it.
//! ```

use super::pieces::Pieces;
use super::{Manner, Stream};

/// Start of a guess.
pub(super) const GUESS_OPENING: &str = "<think>I guess door ";

/// Probability of naming a door without trying one.
const GUESS: f64 = 0.12;
/// Probability of naming another door after a dead end instead of trying it.
const GIVE_UP: f64 = 0.25;

const OPENINGS: [&str; 3] = ["Okay, let me look at this.", "Let me start.", "Alright, I should follow the edges."];
const RULES: [&str; 2] = ["Only one of the doors leads to G.", "I follow the edges of a door until there are no more."];
const HEDGES: [&[&str]; 2] = [
    &["It is not possible to see this at once.", "I should be careful with the letters here."],
    &["There is no need to rush.", "Let me try the doors one by one."],
];
const DEAD: [&str; 2] = ["Hmm, dead end.", "That leads nowhere."];
const BACK: [&str; 2] = ["Let me go back.", "Wait, let me try another door."];
const FOUND: [&str; 2] = ["Found it.", "That is G."];
const REMARKS: [&[&str]; 2] = [
    &["Everything seems to fit.", "I see no mistake in the steps."],
    &["I am fairly sure now, but let me not be careless.", "That should be the answer to the question."],
];

/// Doors and the path behind each: a sequence of letters, one of which ends in `G`.
#[derive(Debug, Clone)]
pub(super) struct Doors {
    pub(super) question: String,
    /// Path behind door `i + 1`.
    paths: Vec<String>,
    /// The edges in the order of the question.
    edges: Vec<String>,
    right: usize,
}

pub(super) fn draw(difficulty: u8, random: &mut Stream) -> Doors {
    let count = if difficulty == 4 { 5 } else { random.range(difficulty.into(), i64::from(difficulty) + 1) } as usize;
    let right = random.range(0, count as i64 - 1) as usize;
    let mut letters: Vec<char> = ('a'..='z').collect();
    random.shuffle(&mut letters);
    let paths: Vec<String> = (0..count)
        .map(|door| {
            let length = random.range(3, 4) as usize;
            let mut path: String = letters.drain(..length).collect();
            if door == right {
                path.pop();
                path.push('G');
            }
            path
        })
        .collect();
    let mut edges: Vec<String> = (1..).zip(&paths).flat_map(|(door, path)| edges(door, path)).collect();
    random.shuffle(&mut edges);
    Doors { question: format!("Edges: {}. Which door leads to G?", edges.join(";")), paths, edges, right }
}

fn edges(door: usize, path: &str) -> Vec<String> {
    let nodes: Vec<String> = std::iter::once(door.to_string()).chain(path.chars().map(String::from)).collect();
    nodes.windows(2).map(|pair| pair.join(" ")).collect()
}

impl Doors {
    pub(super) fn answer(&self) -> usize {
        self.right + 1
    }

    fn walk(&self, door: usize) -> String {
        let nodes = self.paths[door].chars().map(String::from);
        std::iter::once((door + 1).to_string()).chain(nodes).collect::<Vec<_>>().join(" ")
    }

    /// Return the shortest trace: the right door at once.
    pub(super) fn floor(&self) -> String {
        format!("<think>{}.</think>\\boxed{{{}}}", self.walk(self.right), self.answer())
    }

    pub(super) fn trace(&self, manner: Manner, slips: bool, random: &mut Stream) -> (String, String) {
        let mut pieces = Pieces::new(manner, random);
        pieces.remark(0.9, &OPENINGS);
        if pieces.filler(0.5) {
            pieces.say(format!("The edges are {}.", self.edges.join(";")));
        }
        pieces.remark(0.8, &RULES);
        for hedges in HEDGES {
            pieces.remark(0.85, hedges);
        }
        let mut doors: Vec<usize> = (0..self.paths.len()).collect();
        pieces.random().shuffle(&mut doors);
        let mut doors = doors.into_iter();
        let mut answer = self.right;
        let mut found = false;
        let mut chance = GUESS;
        for door in doors.by_ref() {
            if slips && !pieces.useful(1.0 - chance) {
                pieces.say(format!("I guess door {}.", door + 1));
                answer = door;
                break;
            }
            chance = GIVE_UP;
            pieces.say(format!("{}.", self.walk(door)));
            if door == self.right {
                found = true;
                break;
            }
            pieces.remark(0.8, &DEAD);
            pieces.remark(0.7, &BACK);
        }
        if found {
            self.add_filler(doors, &mut pieces);
        }
        for remarks in REMARKS {
            pieces.remark(0.8, remarks);
        }
        if pieces.filler(0.9) {
            pieces.say(format!("Therefore, the answer is door {}.", answer + 1));
        }
        (pieces.finish(&(answer + 1).to_string()), (answer + 1).to_string())
    }

    /// Add text that is not needed once G was found.
    fn add_filler(&self, others: impl Iterator<Item = usize>, pieces: &mut Pieces<'_>) {
        pieces.remark(0.8, &FOUND);
        if pieces.filler(0.5) {
            let path = self.walk(self.right);
            pieces.say(format!("Let me walk it again: {path}."));
        }
        for door in others {
            if pieces.filler(0.4) {
                pieces.remark(0.7, &BACK);
                pieces.say(format!("{}.", self.walk(door)));
                pieces.remark(0.8, &DEAD);
            }
        }
    }
}
