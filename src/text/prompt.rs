//! Prompt settings: the `[prompt]` section of a run's settings.

use chrono::NaiveDate;
use serde::{Deserialize, Serialize};

use super::chat::{Message, Prompt};
use crate::error::{Error, Result};

/// Value of [`PromptConfig::suffix`] that lets the program choose.
const AUTO: &str = "auto";

/// Suffix chosen by `auto`.
const BOXED: &str = "\nReason step by step, and put the final answer within \\boxed{}.";

/// Text written around a problem before the model sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PromptConfig {
    /// System message placed before the conversation; empty for none.
    pub system: String,
    /// Text inserted before the content of the last message.
    pub prefix: String,
    /// Text appended to the content of the last message. `"auto"` appends an instruction to put the answer in
    /// `\boxed{}` if the problem is from a file, its answer is a formula and its prompt specifies no answer format;
    /// otherwise nothing.
    pub suffix: String,
    /// Date passed to the chat template, such as `2026-11-26`; empty for the date on which the run started.
    pub date: String,
    /// Name of the chat template, for a model that has several, such as `tool_use`; the default one if not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Additional variables passed to the chat template, such as `enable_thinking = false`.
    pub chat_template_kwargs: toml::Table,
}

impl Default for PromptConfig {
    fn default() -> Self {
        Self {
            system: String::new(),
            prefix: String::new(),
            suffix: AUTO.to_string(),
            date: String::new(),
            template: None,
            chat_template_kwargs: toml::Table::new(),
        }
    }
}

impl PromptConfig {
    /// Return one message per invalid setting.
    pub fn mistakes(&self) -> Vec<String> {
        let mut mistakes = Vec::new();
        if !self.date.is_empty() && self.day().is_none() {
            mistakes.push(format!("prompt.date = {:?} must be a date such as \"2026-11-26\"", self.date));
        }
        for key in ["messages", "add_generation_prompt"] {
            if self.chat_template_kwargs.contains_key(key) {
                mistakes.push(format!("prompt.chat_template_kwargs.{key} is set by tempering itself: remove it"));
            }
        }
        mistakes
    }

    /// Return the date, if one is given.
    pub(super) fn day(&self) -> Option<NaiveDate> {
        NaiveDate::parse_from_str(&self.date, "%Y-%m-%d").ok()
    }

    /// Return the prompt with these settings applied: a text, or messages if there is a system turn.
    ///
    /// # Errors
    /// When the conversation has a system turn of its own in addition to [`PromptConfig::system`].
    pub(super) fn ask(&self, prompt: &Prompt) -> Result<Prompt> {
        let (prompt, formula) = match prompt {
            Prompt::Formula(prompt) => (prompt.as_ref(), true),
            other => (other, false),
        };
        let suffix = match self.suffix.as_str() {
            AUTO if formula && !specifies_form(&prompt.text()) => BOXED,
            AUTO => "",
            suffix => suffix,
        };
        let around = |text: &str| format!("{}{text}{suffix}", self.prefix);
        if let (Prompt::Text(text), true) = (prompt, self.system.is_empty()) {
            return Ok(Prompt::Text(around(text)));
        }
        let mut messages = prompt.to_messages();
        if let Some(last) = messages.last_mut() {
            last.content = around(&last.content);
        }
        if !self.system.is_empty() {
            if messages.iter().any(|message| message.role == "system") {
                let text: String = prompt.text().chars().take(80).collect();
                return Err(Error::Invalid(format!(
                    "prompt.system is set, but a row has its own system turn: set prompt.system = \"\" or remove the \
                        turn from the row: {text}…"
                )));
            }
            messages.insert(0, Message::new("system", self.system.as_str()));
        }
        Ok(Prompt::Messages(messages))
    }
}

/// Return whether the text of a problem specifies the form of its answer.
fn specifies_form(text: &str) -> bool {
    ["\\boxed", "\\fbox", "<answer>", "####"].iter().any(|form| text.contains(form))
        || text.to_ascii_lowercase().contains("answer:")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(config: &PromptConfig, prompt: &Prompt) -> Prompt {
        config.ask(prompt).unwrap()
    }

    fn formula(text: &str) -> Prompt {
        Prompt::Formula(Box::new(Prompt::Text(text.into())))
    }

    #[test]
    fn a_box_is_asked_for_where_a_formula_is_wanted_and_no_form_is_named() {
        let auto = PromptConfig::default();
        assert_eq!(asked(&auto, &formula("2+3?")).text(), format!("2+3?{BOXED}"));
        assert_eq!(asked(&auto, &Prompt::Text("2+3?".into())).text(), "2+3?");
        for own in ["2+3? Use \\boxed{}.", "2+3? End with \"Answer: n\".", "2+3? Write <answer>n</answer>."] {
            assert_eq!(asked(&auto, &formula(own)).text(), own);
        }
        let none = PromptConfig { suffix: String::new(), ..PromptConfig::default() };
        assert_eq!(asked(&none, &formula("2+3?")).text(), "2+3?");
        let own = PromptConfig { prefix: "Q: ".into(), suffix: " A:".into(), ..PromptConfig::default() };
        assert_eq!(asked(&own, &Prompt::Text("2+3?".into())).text(), "Q: 2+3? A:");
    }

    #[test]
    fn a_system_turn_comes_first_and_only_once() {
        let config = PromptConfig { system: "Be brief.".into(), ..PromptConfig::default() };
        let turns = [Message::user("a"), Message::new("assistant", "b"), Message::user("c")];
        let chat = Prompt::Formula(Box::new(Prompt::Messages(turns.to_vec())));
        let Prompt::Messages(messages) = asked(&config, &chat) else { panic!("messages") };
        assert_eq!(messages[0], Message::new("system", "Be brief."));
        assert_eq!(messages[1..3], turns[..2]);
        assert_eq!(messages[3].content, format!("c{BOXED}"));
        let error = config.ask(&Prompt::Messages(messages)).unwrap_err().to_string();
        assert!(error.contains("its own system turn"), "{error}");
    }

    #[test]
    fn settings_are_strict() {
        let config = |text: &str| toml::from_str::<PromptConfig>(text);
        assert!(config("sufix = ''").is_err());
        let config =
            config("date = '26.11.2026'\nchat_template_kwargs = { messages = [], enable_thinking = false }").unwrap();
        let mistakes = config.mistakes();
        assert!(mistakes[0].starts_with("prompt.date = \"26.11.2026\""), "{mistakes:?}");
        assert_eq!((mistakes.len(), mistakes[1].contains("kwargs.messages")), (2, true), "{mistakes:?}");
        assert_eq!(toml::from_str::<PromptConfig>(&toml::to_string(&config).unwrap()).unwrap(), config);
        assert!(!toml::to_string(&PromptConfig::default()).unwrap().contains("\ntemplate ="));
    }
}
