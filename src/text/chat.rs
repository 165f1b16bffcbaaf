//! Messages and the chat template that renders them as one text.
//!
//! Templates are Jinja, written for the environment of Hugging Face `transformers`: trimmed blocks, loop controls,
//! `raise_exception`, `strftime_now`, a `tojson` that escapes no HTML, and `{% generation %}` markers (which only matter
//! for a loss mask and are ignored). A template that renders there gives the same text here, or an error that names
//! what is not supported, with these known exceptions, in which the text differs:
//!
//! - A width in `'%5s' % x` or `'{:5}'.format(x)` counts bytes, and `'%.3d'` ignores its precision.
//! - `str.format` writes floats inside of a list as Rust does. Where a text is not ASCII, `isalpha`, `isdigit` and the
//!   like follow Rust's properties of characters.
//! - What is no list in Python but can be iterated (`range(3)`, `d.items()`, the result of `select`) prints as a list.
//! - A number beyond 128 bits is an error, and `none` as the default of `int` and `float` gives zero.
//! - What `set` assigns inside of `{% generation %}` is seen after it.
//!
//! A template that fails there may render here.
//!
//! A template comes with a downloaded model: it reads no files, and its work and memory are bounded.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use chrono::format::{Item, StrftimeItems};
use chrono::{Local, NaiveDate, NaiveDateTime};
use minijinja::value::Value;
use minijinja::{Environment, ErrorKind};
use serde::{Deserialize, Serialize};

use super::jinja;
use crate::contain::contained;
use crate::error::{Error, Result};

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`; templates may know others.
    pub role: String,
    /// Text of the turn.
    pub content: String,
}

impl Message {
    /// Create a turn of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }

    /// Create a user's turn.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }
}

/// A prompt for a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// A plain text; used as a single user turn if the tokenizer has a chat template.
    Text(String),
    /// A conversation that ends with the turn to answer.
    Messages(Vec<Message>),
    /// A problem from a file whose answer is a formula: `[prompt] suffix = "auto"` adds the form of the answer.
    Formula(Box<Prompt>),
}

impl Prompt {
    /// Return the text of the prompt without roles; a plain text equals the same text as a single user turn.
    pub fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Messages(messages) => messages.iter().map(|m| m.content.as_str()).collect::<Vec<_>>().join("\n"),
            Self::Formula(prompt) => prompt.text(),
        }
    }

    /// Return the prompt as a conversation; a plain text becomes one user turn.
    pub fn to_messages(&self) -> Vec<Message> {
        match self {
            Self::Text(text) => vec![Message::user(text)],
            Self::Messages(messages) => messages.clone(),
            Self::Formula(prompt) => prompt.to_messages(),
        }
    }
}

/// Texts of the special tokens that a template may write.
#[derive(Debug, Clone, Default)]
pub struct SpecialTokens {
    /// Start of a text.
    pub bos: Option<String>,
    /// End of a turn or a text.
    pub eos: Option<String>,
    /// Padding.
    pub pad: Option<String>,
}

/// A compiled chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    file: PathBuf,
    tokens: SpecialTokens,
    kwargs: BTreeMap<String, Value>,
}

const TEMPLATE: &str = "chat_template";

/// Function that returns the date to templates.
const DATE: &str = "strftime_now";

impl ChatTemplate {
    /// Compiles `source`, which was read from `file`. It sees today's date.
    pub fn new(source: &str, file: &Path, tokens: SpecialTokens) -> Result<Self> {
        let fail = |fault| Error::file(file, format!("chat template: {fault}"));
        let mut environment = jinja::compile(TEMPLATE, source).map_err(fail)?;
        environment.add_function("raise_exception", raise_exception);
        let template = Self { environment, file: file.to_path_buf(), tokens, kwargs: BTreeMap::new() };
        Ok(template.with(BTreeMap::new(), Local::now().date_naive()))
    }

    /// Return the template with additional variables, at midnight of `date`: the time of day would change each prompt.
    pub fn with(mut self, kwargs: BTreeMap<String, Value>, date: NaiveDate) -> Self {
        self.kwargs = kwargs;
        self.environment.add_function(DATE, move |format: &str| strftime(format, &date.into()));
        self
    }

    /// Return the names that the template reads and does not set itself.
    pub fn variables(&self) -> HashSet<String> {
        self.environment.get_template(TEMPLATE).map(|template| template.undeclared_variables(false)).unwrap_or_default()
    }

    /// Return whether the template reads the date.
    pub fn reads_date(&self) -> bool {
        self.variables().contains(DATE)
    }

    /// Render a conversation; `add_generation_prompt` opens the assistant's turn.
    ///
    /// # Errors
    /// When the template rejects the conversation, is faulty, or exceeds the work limit.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let fail = |e: minijinja::Error| Error::file(&self.file, format!("chat template: {}", jinja::describe(&e)));
        let turn = |m: &Message| Value::from_pairs([("role", m.role.as_str()), ("content", m.content.as_str())]);
        let token = |token: &Option<String>| token.as_deref().map_or(Value::UNDEFINED, Value::from);
        let variables = [
            ("messages", messages.iter().map(turn).collect::<Value>()),
            ("add_generation_prompt", add_generation_prompt.into()),
            ("bos_token", token(&self.tokens.bos)),
            ("eos_token", token(&self.tokens.eos)),
            ("pad_token", token(&self.tokens.pad)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ];
        let own = self.kwargs.iter().map(|(name, value)| (name.as_str(), value.clone()));
        let variables: BTreeMap<&str, Value> = variables.into_iter().chain(own).collect();
        let template = self.environment.get_template(TEMPLATE).map_err(fail)?;
        // minijinja 3.1 panics on a key in brackets that is not ASCII, as in `'{a[é]}'.format(a=1)`.
        match contained(|| template.render(Value::from_pairs(variables))) {
            Some(rendered) => rendered.map_err(fail),
            None => {
                Err(Error::file(&self.file, "chat template: the minijinja library panics on it: simplify the template"))
            }
        }
    }
}

fn raise_exception(message: &str) -> std::result::Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message.to_string()))
}

/// Python's `datetime.strftime`; an unknown directive is an error.
fn strftime(format: &str, time: &NaiveDateTime) -> std::result::Result<String, minijinja::Error> {
    let unknown = || {
        let message = format!("strftime_now({format:?}): unknown directive");
        minijinja::Error::new(ErrorKind::InvalidOperation, message)
    };
    let items: Vec<Item> = StrftimeItems::new(format).collect();
    if items.contains(&Item::Error) {
        return Err(unknown());
    }
    let mut text = String::new();
    // A directive that needs a time zone is an error as well.
    write!(text, "{}", time.format_with_items(items.into_iter())).map_err(|_| unknown())?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(source: &str) -> ChatTemplate {
        let tokens = SpecialTokens { bos: Some("<s>".into()), eos: Some("</s>".into()), pad: None };
        ChatTemplate::new(source, Path::new("dir/tokenizer_config.json"), tokens).unwrap()
    }

    /// Qwen3's template from its published tokenizer_config.json, without the branch for tool calls.
    const QWEN3: &str = r#"{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}"#;

    /// Found by fuzzing: the library split a character in two.
    #[test]
    fn a_panic_of_the_library_is_an_error() {
        const FORMAT: &str = "{{ '{a[é]}'.format(a=1) }}";
        let template = ChatTemplate::new(FORMAT, Path::new("dir/x.jinja"), SpecialTokens::default()).unwrap();
        let error = template.render(&[Message::user("q")], true).unwrap_err().to_string();
        assert_eq!(error, "dir/x.jinja: chat template: the minijinja library panics on it: simplify the template");
    }

    #[test]
    fn qwen3_template_renders_as_published() {
        let messages = [
            Message::new("system", "Be brief."),
            Message::user("1+1?"),
            Message::new("assistant", "<think>\nadd\n</think>\n\n2"),
            Message::user("2+2?"),
        ];
        let got = template(QWEN3).render(&messages, true).unwrap();
        let want = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n2\
                    <|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(got, want);
        let last = template(QWEN3).render(&messages[1..3], false).unwrap();
        assert!(last.ends_with("<|im_start|>assistant\n<think>\nadd\n</think>\n\n2<|im_end|>\n"), "{last}");
    }

    #[test]
    fn blocks_are_trimmed_and_markers_ignored() {
        let source = "{{ bos_token }}{% for m in messages %}\n  {% if m['role'] == 'user' %}\nU:{{ m['content'] | trim }}\n  \
                      {% else %}\n{% generation %}\nA:{{ m.content }}{{ eos_token }}\n{% endgeneration %}\n  {% endif %}\n{% endfor %}";
        let messages = [Message::user(" hi "), Message::new("assistant", "yo")];
        assert_eq!(template(source).render(&messages, false).unwrap(), "<s>U:hi\nA:yo</s>\n");
    }

    #[test]
    fn errors_name_the_file_and_the_templates_message() {
        let source = "{% if messages[0].role != 'user' %}\n{{ raise_exception('roles must alternate') }}\n{% endif %}";
        let error = template(source).render(&[Message::new("system", "x")], true).unwrap_err().to_string();
        assert!(error.contains("dir/tokenizer_config.json") && error.contains("roles must alternate"), "{error}");
        let broken = ChatTemplate::new("{% if %}", Path::new("dir/x.jinja"), SpecialTokens::default()).unwrap_err();
        assert!(broken.to_string().starts_with("dir/x.jinja: "), "{broken}");
    }

    #[test]
    fn dates_are_those_of_the_calendar_and_unknown_directives_errors() {
        let leap = NaiveDate::from_ymd_opt(2024, 2, 29).unwrap();
        let dated = |format: &str| {
            let source = format!("{{{{ strftime_now('{format}') }}}}");
            template(&source).with(BTreeMap::new(), leap).render(&[], false)
        };
        assert_eq!(dated("%Y-%m-%d %H:%M:%S %A %b %%").unwrap(), "2024-02-29 00:00:00 Thursday Feb %");
        for unknown in ["%Q!", "%Z!"] {
            let error = dated(unknown).unwrap_err().to_string();
            assert!(error.contains(unknown), "{error}");
        }
        assert!(template("{% if strftime_now is defined %}x{% endif %}").reads_date() && !template("x").reads_date());
    }

    #[test]
    fn variables_of_the_settings_reach_the_template() {
        let kwargs = BTreeMap::from([("enable_thinking".to_string(), Value::from(false))]);
        let day = NaiveDate::default();
        let quiet = template(QWEN3).with(kwargs, day).render(&[Message::user("hi")], true).unwrap();
        assert!(quiet.ends_with("<|im_start|>assistant\n<think>\n\n</think>\n\n"), "{quiet}");
        assert!(template(QWEN3).variables().contains("enable_thinking"));
        assert!(!template(QWEN3).variables().contains("thinking"));
    }

    #[test]
    fn line_ends_are_those_of_jinja() {
        let source = "{%- for m in messages %}\n<u>{{ m.content }}</u>\n{%- endfor %}\n{% if true %}\n!\n{% endif %}\n";
        let turns = [Message::user("a\r\nb"), Message::user("c")];
        let unix = template(source).render(&turns, true).unwrap();
        assert_eq!(template(&source.replace('\n', "\r\n")).render(&turns, true).unwrap(), unix);
        assert_eq!(template(&source.replace('\n', "\r")).render(&turns, true).unwrap(), unix);
        assert!(unix.contains("a\r\nb"), "{unix:?}");
    }

    /// A conversation of a million tokens is no runaway.
    #[test]
    fn long_conversations_are_rendered() {
        let long = [Message::user("word ".repeat(1_000_000))];
        assert!(template(QWEN3).render(&long, true).unwrap().len() > 5_000_000);
    }
}
