//! Evaluation protocols of papers, each selected by one word.

use super::EvalConfig;

/// Defaults of an evaluation; explicit settings override them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum Protocol {
    /// One completion of at most 512 tokens at temperature 1
    Plain,
    /// As papers on concise reasoning evaluate: temperature 0.6, top-p 0.95, 16 completions of at most 32768 tokens, \boxed{}
    Paper,
}

impl Protocol {
    /// Return the evaluation settings of the protocol.
    pub fn config(self) -> EvalConfig {
        let plain = EvalConfig { num_problems: 0, ..EvalConfig::default() };
        match self {
            Self::Plain => plain,
            Self::Paper => EvalConfig {
                num_generations: 16,
                temperature: 0.6,
                top_p: 0.95,
                max_completion_length: 32_768,
                ..plain
            },
        }
    }

    /// Return the text after the question ([`PromptConfig::suffix`](crate::text::prompt::PromptConfig::suffix)).
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Plain => "auto",
            Self::Paper => "\nPlease reason step by step, and put your final answer within \\boxed{}.",
        }
    }

    /// Describe the settings in words.
    pub fn describe(self) -> String {
        let EvalConfig { num_generations, temperature, top_p, max_completion_length, .. } = self.config();
        let plural = if num_generations == 1 { "" } else { "s" };
        format!(
            "temperature {temperature}, top-p {top_p}, {num_generations} completion{plural} per problem, at most {max_completion_length} \
             tokens, text after the question: {:?}",
            self.suffix()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_protocol_says_what_it_does() {
        let text = Protocol::Paper.describe();
        let wanted =
            ["temperature 0.6, top-p 0.95, 16 completions per problem, at most 32768 tokens", "within \\\\boxed{}."];
        assert!(wanted.iter().all(|part| text.contains(part)), "{text}");
        assert!(Protocol::Plain.describe().contains("1 completion per problem"));
        assert!(Protocol::Paper.config().mistakes().is_empty() && Protocol::Plain.config().mistakes().is_empty());
    }
}
