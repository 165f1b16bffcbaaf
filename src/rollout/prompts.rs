//! The prompts of a run, filtered by length, and the requests for their completions.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::data::problems::{DataConfig, Problems};
use crate::data::{DataReport, Problem};
use crate::error::Result;
use crate::generate::{Request, Room};
use crate::noise::Purpose;
use crate::text::tokenizer::Tokenizer;

/// A problem to sample completions for.
#[derive(Debug, Clone)]
pub struct Asked<'a> {
    /// The problem.
    pub problem: Cow<'a, Problem>,
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// Key of the sampling noise, together with the seed and the completion number. Two draws of a problem have
    /// different keys and therefore different completions.
    pub key: [u64; 2],
}

impl<'a> Asked<'a> {
    /// Iterate over the problems from index `first` on, with their keys in evaluation and analysis: the number of
    /// earlier problems with the same id, and the id. The completions of a problem do not depend on other problems.
    pub fn keys(problems: &'a [Problem], first: usize) -> impl Iterator<Item = (&'a Problem, [u64; 2])> {
        let mut seen: HashMap<u64, u64> = HashMap::new();
        let key = move |problem: &'a Problem| {
            let before = seen.entry(problem.id).or_insert(0);
            *before += 1;
            (problem, [*before - 1, problem.id])
        };
        problems.iter().map(key).skip(first)
    }

    /// Encode the prompt of a problem. `start` is a forced start of each completion and becomes part of the prompt.
    ///
    /// # Errors
    /// When the prompt cannot be rendered or leaves no room for the longest completion.
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

/// Return `count` consecutive requests for each of `asked`.
pub fn requests(asked: &[Asked], count: usize, seed: u64) -> Vec<Request> {
    let of = |asked: &Asked, sample: usize| Request {
        prompt: asked.prompt.clone(),
        key: [seed, asked.key[0], asked.key[1], sample as u64],
    };
    asked.iter().flat_map(|asked| (0..count).map(move |sample| of(asked, sample))).collect()
}

/// The problems of a run with sufficiently short prompts, by the number of their draw.
#[derive(Debug, Clone)]
pub struct Prompts {
    problems: Problems,
    tokenizer: Tokenizer,
    room: Room<'static>,
    seed: u64,
}

impl Prompts {
    /// Filter or refuse overlong prompts in the rows of a file, as `data` specifies. Each kept prompt leaves room for
    /// the longest completion. Of the embedded tasks, which are endless and short, only the first prompt is checked.
    ///
    /// # Errors
    /// When an overlong prompt is not to be filtered, a kept prompt leaves too little room, or no prompt is left.
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

    /// Return the problem of a draw. The rows of a file are shuffled differently in each epoch.
    ///
    /// # Errors
    /// When the chat template refuses the prompt, or it leaves too little room.
    pub fn draw(&self, draw: u64) -> Result<Asked<'static>> {
        let problem = self.problems.shuffled(self.seed, draw);
        let prompt = self.tokenizer.encode_prompt(&problem.prompt)?;
        self.room.check(prompt.len(), &problem.prompt.text())?;
        Ok(Asked { problem: Cow::Owned(problem), prompt, key: [Purpose::Rollouts.word(), draw] })
    }
}
