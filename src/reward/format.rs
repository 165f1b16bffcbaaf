//! Reward for the form of a completion: one thinking section, then a stated answer.

use serde::{Deserialize, Serialize};

use super::{Answer, AnswerGroup, Memory, Parts, Reward, indicator};
use crate::error::Result;
use crate::verify::{after_thinking, stated};

/// 1 for a finished `<think>…</think>` followed by a stated answer, else 0.
///
/// [`Tokenizer::completion_text`](crate::text::tokenizer::Tokenizer::completion_text) prepends the mark if a chat
/// template wrote it into the prompt; otherwise the text may begin inside the thinking.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Format {}

impl Reward for Format {
    fn name(&self) -> &str {
        "format"
    }

    fn score(&self, group: &AnswerGroup, _memory: &Memory) -> Result<Vec<Option<Parts>>> {
        Ok(group.each(|answer, _| Parts::task(indicator(formatted(answer)))))
    }
}

/// Whether an answer is finished and has the right form.
pub(super) fn formatted(answer: &Answer) -> bool {
    answer.finished && well_formed(&answer.text)
}

fn well_formed(text: &str) -> bool {
    let text = text.trim_start();
    let thinking = text.strip_prefix("<think>").unwrap_or(text);
    thinking.matches("</think>").count() == 1
        && !thinking.contains("<think>")
        && after_thinking(text).and_then(stated).is_some_and(|answer| !answer.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_thinking_once_and_then_answering_is_well_formed() {
        let table = [
            ("<think>a</think>\n\\boxed{5}", true),
            ("a</think> #### 5", true),
            ("<think>a</think><answer>5</answer>", true),
            ("<think>a</think> 5", false),
            ("<think>\\boxed{5}</think> done", false),
            ("<think>a</think>\\boxed{}", false),
            ("<think>a</think><think>b</think>\\boxed{5}", false),
            ("so <think>a</think>\\boxed{5}", false),
            ("<think>a \\boxed{5}", false),
            ("\\boxed{5}", false),
            // Thinking opened by the prompt and again by the completion; a template with thinking disabled.
            ("<think>\n<think>a</think>\\boxed{5}", false),
            ("<think>\n\n</think>\n\n\\boxed{5}", true),
        ];
        for (text, want) in table {
            assert_eq!(well_formed(text), want, "{text:?}");
        }
    }
}
