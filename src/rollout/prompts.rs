//! Prompts, opened and filtered once, and the requests for their completions.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::data::problems::{DataConfig, Problems};
use crate::data::{DataReport, Problem};
use crate::error::Result;
use crate::generate::{Request, Room};
use crate::noise::Purpose;
use crate::text::tokenizer::Tokenizer;

/// A problem whose completions are asked for.
#[derive(Debug, Clone)]
pub struct Asked<'a> {
    /// The problem.
    pub problem: Cow<'a, Problem>,
    /// Tokens of its prompt.
    pub prompt: Vec<u32>,
    /// The key of its noise, beside the seed and the number of the completion. The same problem drawn twice has two keys,
    /// and two different groups of completions.
    pub key: [u64; 2],
}

impl<'a> Asked<'a> {
    /// Problems from number `first` on, to be asked for once each as evaluation and analysis do. The key is the problem's
    /// identity, so that its completions do not depend on the other problems, and how often that identity came before.
    pub fn keys(problems: &'a [Problem], first: usize) -> impl Iterator<Item = (&'a Problem, [u64; 2])> {
        let mut seen: HashMap<u64, u64> = HashMap::new();
        let key = move |problem: &'a Problem| {
            let before = seen.entry(problem.id).or_insert(0);
            *before += 1;
            (problem, [*before - 1, problem.id])
        };
        problems.iter().map(key).skip(first)
    }

    /// A problem with its prompt, and `start` as the forced start of each completion.
    ///
    /// # Errors
    /// A prompt that cannot be rendered, or leaves no room for the longest completion.
    pub fn of(
        (problem, key): (&'a Problem, [u64; 2]),
        start: &[u32],
        tokenizer: &Tokenizer,
        room: Room,
    ) -> Result<Self> {
        let prompt = [&tokenizer.encode_prompt(&problem.prompt)?, start].concat();
        room.check(prompt.len(), &problem.prompt.text())?;
        Ok(Self { problem: Cow::Borrowed(problem), prompt, key })
    }
}

/// `count` requests for each of `asked`, those of one prompt in a row.
pub fn requests(asked: &[Asked], count: usize, seed: u64) -> Vec<Request> {
    let of = |asked: &Asked, sample: usize| Request {
        prompt: asked.prompt.clone(),
        key: [seed, asked.key[0], asked.key[1], sample as u64],
    };
    asked.iter().flat_map(|asked| (0..count).map(move |sample| of(asked, sample))).collect()
}

/// The problems of a run whose prompts are short enough, by the number of their draw.
#[derive(Debug, Clone)]
pub struct Prompts {
    problems: Problems,
    tokenizer: Tokenizer,
    room: Room<'static>,
    seed: u64,
}

impl Prompts {
    /// Leaves overlong prompts out of the rows of a file, once and for all, or refuses them, as `data` says; each that is
    /// kept leaves room for the longest completion. The embedded tasks are endless and short: of theirs the first is looked at.
    ///
    /// # Errors
    /// A prompt that is too long and not to be left out, one without room, and a file of nothing but overlong prompts.
    pub fn open(
        problems: Problems,
        data: &DataConfig,
        tokenizer: &Tokenizer,
        room: Room<'static>,
        seed: u64,
    ) -> Result<(Self, DataReport)> {
        let (problems, report) = match problems {
            Problems::Rows(rows) => {
                let check = |tokens, problem: &Problem| room.check(tokens, &problem.prompt.text());
                let (kept, report) = data.short_enough(rows, &data.train, tokenizer, room.longest_prompt(), check)?;
                (Problems::Rows(kept), report)
            }
            tasks @ Problems::Tasks(..) => (tasks, DataReport::default()),
        };
        let prompts = Self { problems, tokenizer: tokenizer.clone(), room, seed };
        prompts.draw(0)?;
        Ok((prompts, report))
    }

    /// The problem of a draw; every epoch of a file goes through its rows in another order.
    ///
    /// # Errors
    /// A prompt that the chat template refuses, or that leaves too little room.
    pub fn draw(&self, draw: u64) -> Result<Asked<'static>> {
        let problem = self.problems.shuffled(self.seed, draw);
        let prompt = self.tokenizer.encode_prompt(&problem.prompt)?;
        self.room.check(prompt.len(), &problem.prompt.text())?;
        Ok(Asked { problem: Cow::Owned(problem), prompt, key: [Purpose::Rollouts.word(), draw] })
    }
}
