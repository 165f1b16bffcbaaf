use std::fs;

use serde_json::Value;

use super::*;
use crate::text::stream::TextStream;
use crate::verify::{Verdict, grade};

/// Return the characters with which GPT-2 writes bytes.
fn byte_letters() -> Vec<char> {
    let plain = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut next = 256;
    let letter = |b: u32| {
        if plain(b) {
            return char::from_u32(b).unwrap();
        }
        next += 1;
        char::from_u32(next - 1).unwrap()
    };
    (0..256).map(letter).collect()
}

/// Return the ids of an assistant's words and of the end of its turn.
fn completion(tokenizer: &Tokenizer, words: &str) -> Result<Vec<u32>> {
    let (ids, prompt) = tokenizer.encode_conversation(&Prompt::Text("2+3?".into()), words)?;
    Ok(ids[prompt..].to_vec())
}

const CHATML: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                      {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// Write a byte-level tokenizer: ids 0 to 255 are bytes, followed by the `special` tokens.
fn write_tokenizer(dir: &Path, special: &[&str], post_processor: Value) {
    let vocab: serde_json::Map<String, Value> =
        byte_letters().iter().enumerate().map(|(id, c)| (c.to_string(), id.into())).collect();
    let added: Vec<Value> = special
        .iter()
        .enumerate()
        .map(|(i, content)| {
            serde_json::json!({"id": 256 + i, "content": content, "single_word": false, "lstrip": false,
                               "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    let level =
        serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "added_tokens": added, "normalizer": null, "pre_tokenizer": level,
        "post_processor": post_processor, "decoder": level, "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    fs::write(dir.join(TOKENIZER), tokenizer.to_string()).unwrap();
}

/// Create a folder with these special tokens (from id 256 on) and files.
pub(in crate::text) fn folder(special: &[&str], config: Value, generation: Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_tokenizer(dir.path(), special, Value::Null);
    fs::write(dir.path().join(CONFIG), config.to_string()).unwrap();
    fs::write(dir.path().join(GENERATION), generation.to_string()).unwrap();
    dir
}

pub(in crate::text) fn load(dir: &tempfile::TempDir) -> Tokenizer {
    Tokenizer::load(dir.path()).unwrap()
}

/// ChatML with <|im_start|>, <|im_end|>, <|endoftext|>, <|fim_pad|>, <think>, </think> as 256 to 261.
fn chatml(template: &str) -> tempfile::TempDir {
    let special = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|fim_pad|>", "<think>", "</think>"];
    let config = serde_json::json!({"eos_token": "<|im_end|>", "chat_template": template});
    folder(&special, config, serde_json::json!({"eos_token_id": [257, 258]}))
}

pub(in crate::text) fn sample() -> (tempfile::TempDir, Tokenizer) {
    let config = serde_json::json!({"eos_token": "<|im_end|>", "pad_token": {"content": "<|endoftext|>"},
                                    "chat_template": CHATML});
    let special = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|fim_pad|>"];
    let dir = folder(&special, config, serde_json::json!({"eos_token_id": [257, 258]}));
    let tokenizer = load(&dir);
    (dir, tokenizer)
}

#[test]
fn text_comes_back_and_special_tokens_are_single_ids() {
    let (_dir, tokenizer) = sample();
    let ids = tokenizer.encode("a<|im_end|>é").unwrap();
    assert_eq!(ids, [97, 257, 0xc3, 0xa9]);
    assert_eq!(tokenizer.decode(&ids, false), "a<|im_end|>é");
    assert_eq!(tokenizer.decode(&ids, true), "aé");
    assert_eq!(tokenizer.vocab_size(), 260);
    assert_eq!(tokenizer.token_id("<|im_start|>"), Some(256));
    assert_eq!(tokenizer.token_text(257), "<|im_end|>");
    // tokenizer.json truncates at four tokens; a trainer must see all of them.
    assert_eq!(tokenizer.encode("abcdefgh").unwrap().len(), 8);
}

#[test]
fn every_end_of_text_stops_and_pad_is_none_of_them() {
    let (dir, tokenizer) = sample();
    assert_eq!(tokenizer.stop_ids(), [257, 258]);
    // The file's pad token <|endoftext|> is a stop token (trl#3091: the model never learns to stop).
    assert_eq!((tokenizer.pad_id(), tokenizer.pad_is_stop()), (259, false));
    fs::remove_file(dir.path().join(GENERATION)).unwrap();
    fs::write(dir.path().join("config.json"), r#"{"eos_token_id": 258}"#).unwrap();
    assert_eq!(load(&dir).stop_ids(), [258, 257]);
    fs::write(dir.path().join("config.json"), r#"{"eos_token_id": 300}"#).unwrap();
    let error = Tokenizer::load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("eos_token_id = 300 is not a token"), "{error}");
    fs::write(dir.path().join("config.json"), r#"{"eos_token_id": [258, "x"]}"#).unwrap();
    let error = Tokenizer::load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("config.json: eos_token_id = \"x\" is neither"), "{error}");
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    fs::write(dir.path().join(CONFIG), "{}").unwrap();
    let error = Tokenizer::load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("set eos_token_id"), "{error}");
}

#[test]
fn a_string_prompt_gets_the_template_too() {
    let (dir, tokenizer) = sample();
    let text = Prompt::Text("hi".into());
    let turns = Prompt::Messages(vec![Message::user("hi")]);
    let want = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(tokenizer.render_prompt(&text).unwrap(), want);
    assert_eq!(tokenizer.encode_prompt(&text).unwrap(), tokenizer.encode_prompt(&turns).unwrap());
    fs::write(dir.path().join(CONFIG), r#"{"eos_token": "<|im_end|>"}"#).unwrap();
    let bare = Tokenizer::load(dir.path()).unwrap();
    assert_eq!(bare.encode_prompt(&text).unwrap(), bare.encode("hi").unwrap());
    assert!(bare.encode_prompt(&turns).unwrap_err().to_string().contains("no chat template"));
}

#[test]
fn chat_template_jinja_wins_over_the_config() {
    let (dir, _) = sample();
    fs::write(dir.path().join(TEMPLATE), "X{{ messages[0].content }}").unwrap();
    assert_eq!(Tokenizer::load(dir.path()).unwrap().render(&[Message::user("y")], false).unwrap(), "Xy");
}

#[test]
fn a_tokenizer_larger_than_the_model_is_refused() {
    let (dir, tokenizer) = sample();
    assert!(tokenizer.check_vocab(260, dir.path()).is_ok());
    let error = tokenizer.check_vocab(259, dir.path()).unwrap_err().to_string();
    assert!(error.contains("259"), "{error}");
}

#[test]
fn saved_files_are_the_same_bytes() {
    let (dir, tokenizer) = sample();
    let copy = tempfile::tempdir().unwrap();
    tokenizer.save_to(&copy.path().join("new")).unwrap();
    for name in [TOKENIZER, CONFIG, GENERATION] {
        assert_eq!(fs::read(dir.path().join(name)).unwrap(), fs::read(copy.path().join("new").join(name)).unwrap());
    }
}

#[test]
fn a_missing_folder_is_named() {
    let error = Tokenizer::load(Path::new("no/such/folder")).unwrap_err().to_string();
    assert!(error.starts_with("no/such/folder: no such folder"), "{error}");
}

/// Fine-tuning once ended turns with the lowest stop id: `<|endoftext|>` for Qwen, `<|end_of_text|>` for Llama.
#[test]
fn a_turn_ends_with_what_the_template_writes() {
    let special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
    let config = serde_json::json!({"eos_token": "<|im_end|>", "chat_template": CHATML});
    let qwen = load(&folder(&special, config, serde_json::json!({"eos_token_id": [258, 256]})));
    assert_eq!((qwen.stop_ids(), qwen.turn_end()), (&[258, 256][..], &[258][..]));
    assert_eq!(completion(&qwen, "ab").unwrap(), [97, 98, 258]);

    let special = ["<|begin|>", "<|end_of_text|>", "<|start|>", "<|end|>", "<|eom_id|>", "<|eot_id|>"];
    let template = "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}<|end|>\n\n{{ m.content | trim }}<|eot_id|>\
                    {% endfor %}{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}";
    let stops = serde_json::json!({"eos_token_id": [257, 260, 261]});
    let config =
        serde_json::json!({"bos_token": "<|begin|>", "eos_token": "<|end_of_text|>", "chat_template": template});
    let llama = load(&folder(&special, config, stops.clone()));
    assert_eq!((llama.stop_ids(), llama.turn_end()), (&[257, 260, 261][..], &[261][..]));
    assert!(llama.notes().is_empty(), "{:?}", llama.notes());
    // Without a template a text ends with the tokenizer's token, whichever id is first.
    let config = serde_json::json!({"eos_token": "<|eot_id|>"});
    assert_eq!(load(&folder(&special, config, stops.clone())).turn_end(), [261]);
    assert_eq!(load(&folder(&special, serde_json::json!({}), stops.clone())).turn_end(), [257]);
    // Text before the stop token belongs to the end; a template without a stop token adds a note.
    let template = "{% for m in messages %}{{ m.content }} .{{ eos_token if m.role == 'assistant' }}\n{% endfor %}";
    let config = serde_json::json!({"eos_token": "<|eot_id|>", "chat_template": template});
    assert_eq!(load(&folder(&special, config, stops.clone())).turn_end(), [32, 46, 261]);
    let config = serde_json::json!({"eos_token": "<|eot_id|>", "chat_template": "{{ messages[-1].content }}<|end|>"});
    let odd = load(&folder(&special, config, stops));
    assert_eq!(odd.turn_end(), [261]);
    assert!(odd.notes()[0].contains("\"<|end|>\", which has no stop token"), "{:?}", odd.notes());
}

#[test]
fn thinking_that_the_prompt_opens_is_known_to_training_and_grading() {
    let opening = CHATML.replace("assistant\n{%", "assistant\n<think>\n{%");
    let dir = chatml(&opening);
    let tokenizer = load(&dir);
    assert!(tokenizer.opens_thinking());
    let prompt = tokenizer.encode_prompt(&Prompt::Text("2+3?".into())).unwrap();
    let row = completion(&tokenizer, "<think>\nadd\n</think>\n\\boxed{5}").unwrap();
    let whole = tokenizer.decode(&[prompt, row].concat(), false);
    assert!(whole.ends_with("assistant\n<think>\nadd\n</think>\n\\boxed{5}<|im_end|>"), "{whole}");
    let error = completion(&tokenizer, "\\boxed{5}").unwrap_err().to_string();
    assert!(error.contains("does not close it") && error.contains("boxed{5}"), "{error}");

    let strict = |tokenizer: &Tokenizer, text: &str| {
        grade("5", &tokenizer.completion_text(&tokenizer.encode(text).unwrap()), true).strict
    };
    assert_eq!(strict(&tokenizer, "add\n</think>\n\\boxed{5}"), Verdict::Right);
    assert_eq!(strict(&tokenizer, "add, so \\boxed{5}"), Verdict::NoAnswer);
    // Without thinking, or with a template that closes it, grading is unchanged.
    let plain = load(&chatml(CHATML));
    assert_eq!(strict(&plain, "add, so \\boxed{5}"), Verdict::Right);
    let closed = CHATML.replace("assistant\n{%", "assistant\n<think>\n\n</think>\n\n{%");
    let closed = load(&chatml(&closed));
    assert!(!plain.opens_thinking() && !closed.opens_thinking());
    assert_eq!(strict(&closed, "add, so \\boxed{5}"), Verdict::Right);
    assert_eq!(closed.completion_text(&[53]), "<think>\n\n</think>\n\n5");
    // Mentions of the tags in another turn open nothing.
    let talk = format!("Think within <think> and close it.\n{CHATML}");
    assert!(!load(&chatml(&talk)).opens_thinking());
}

/// Decoding once dropped tags that the tokenizer marks as special, and no answer had the right format any more.
#[test]
fn special_thinking_marks_are_read() {
    let dir = chatml(CHATML);
    let tokenizer = load(&dir);
    let ids = tokenizer.encode("<think>a</think>\\boxed{5}<|im_end|>").unwrap();
    assert_eq!((ids[0], ids[2]), (260, 261));
    assert_eq!(tokenizer.completion_text(&ids), "<think>a</think>\\boxed{5}");
    let mut stream = TextStream::new(&tokenizer, true);
    let shown: String = ids.iter().map(|&id| stream.push(id)).collect();
    assert_eq!(shown, "<think>a</think>\\boxed{5}");
}

#[test]
fn settings_of_the_prompt_are_applied_and_those_without_effect_refused() {
    let template = format!("{{% if quiet %}}Q{{% endif %}}{{{{ strftime_now('%d %b') }}}}|{CHATML}");
    let dir = chatml(&template);
    let config: PromptConfig =
        toml::from_str("system = 'S'\nsuffix = '!'\ndate = '2026-02-03'\nchat_template_kwargs.quiet = true").unwrap();
    let tokenizer = load(&dir).with_prompt(&config).unwrap();
    let want = "Q03 Feb|<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nhi!<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(tokenizer.render_prompt(&Prompt::Text("hi".into())).unwrap(), want);
    assert_eq!((tokenizer.prompt(), tokenizer.turn_end()), (&config, &[257][..]));
    // The date is stored only if the template reads it, so that prompts are the same on a later day.
    let (today, without) = (load(&dir).prompt().date.clone(), load(&chatml(CHATML)));
    assert_eq!((today.len(), without.prompt().date.as_str()), (10, ""));

    let error = without.with_prompt(&config).unwrap_err().to_string();
    assert!(error.contains("chat_template_kwargs.quiet is not used by the chat template"), "{error}");
    assert!(error.contains("prompt.date = \"2026-02-03\" is not used"), "{error}");
    fs::write(dir.path().join(CONFIG), r#"{"eos_token": "<|im_end|>"}"#).unwrap();
    let error = load(&dir).with_prompt(&config).unwrap_err().to_string();
    assert!(error.contains("prompt.system is for chat templates, but the tokenizer has none"), "{error}");
}

#[test]
fn a_base_model_gets_the_tokens_its_texts_begin_with() {
    let dir = folder(&["<s>", "</s>"], serde_json::json!({"bos_token": "<s>", "eos_token": "</s>"}), Value::Null);
    let part = |id: &str| serde_json::json!({"SpecialToken": {"id": id, "type_id": 0}});
    let text = serde_json::json!({"Sequence": {"id": "A", "type_id": 0}});
    let token = |id: &str, number: u32| serde_json::json!({"id": id, "ids": [number], "tokens": [id]});
    let post = serde_json::json!({
        "type": "TemplateProcessing", "single": [part("<s>"), text, part("</s>")], "pair": [text, text],
        "special_tokens": {"<s>": token("<s>", 256), "</s>": token("</s>", 257)},
    });
    write_tokenizer(dir.path(), &["<s>", "</s>"], post);
    // The end of a text is not part of a prompt.
    let prompt = Prompt::Text("ab".into());
    assert_eq!(load(&dir).encode_prompt(&prompt).unwrap(), [256, 97, 98]);
    assert_eq!(completion(&load(&dir), "c").unwrap(), [99, 257]);
    assert!(load(&dir).notes()[0].contains("no chat template"));
    // A template writes the token itself; it is not added twice.
    fs::write(dir.path().join(TEMPLATE), "{{ bos_token }}{{ messages[0].content }}").unwrap();
    assert_eq!(load(&dir).encode_prompt(&prompt).unwrap(), [256, 97, 98]);
}

#[test]
fn a_prompt_without_text_is_an_error() {
    let dir = chatml("{% for m in messages if m.role == 'user' %}{{ m.content | trim }}{% endfor %}");
    let error = |turn| load(&dir).encode_prompt(&Prompt::Messages(vec![turn])).unwrap_err().to_string();
    let empty = error(Message::user(" "));
    assert!(empty.contains("the chat template renders no text for the prompt \" \""), "{empty}");
    let lost = error(Message::new("system", "s"));
    assert!(lost.contains("the chat template leaves out a turn of the role \"system\""), "{lost}");
}

/// Regression: a prompt or an answer with the marks of a template got them twice.
#[test]
fn texts_that_end_a_turn_themselves_are_refused() {
    let tokenizer = load(&chatml(CHATML));
    let rendered = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n";
    let turns = vec![Message::user("hi"), Message::new("assistant", "yo<|endoftext|>"), Message::user("and?")];
    for (prompt, part) in [
        (Prompt::Text(rendered.into()), "the text of a turn contains \"<|im_end|>\", which ends a turn"),
        (Prompt::Messages(turns), "the text of a turn contains \"<|endoftext|>\""),
    ] {
        let error = tokenizer.encode_prompt(&prompt).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let error = completion(&tokenizer, "5<|im_end|>\n").unwrap_err().to_string();
    assert!(error.contains("the completion contains \"<|im_end|>\"") && error.contains("remove it: \"5<"), "{error}");
    // Without a template, a text is what it is.
    let bare = load(&folder(&["</s>"], serde_json::json!({"eos_token": "</s>"}), Value::Null));
    assert_eq!(bare.encode_prompt(&Prompt::Text("a</s>b".into())).unwrap(), [97, 256, 98]);
}

/// Regression: with a tokenizer that puts a space before a text, the words and the end of a turn got one each.
#[test]
fn a_conversation_is_encoded_as_one_text() {
    for (template, whole) in [
        (CHATML, "<|im_start|>user\n2+3?<|im_end|>\n<|im_start|>assistant\nIt is 5<|im_end|>"),
        ("{% for m in messages %}{{ m.content }} .<|im_end|>{% endfor %}", "2+3? .<|im_end|>It is 5 .<|im_end|>"),
        (
            "{% for m in messages %}Q {{ m.content }} A {% if m.role == 'assistant' %}.<|im_end|>{% endif %}{% endfor %}",
            "Q 2+3? A Q It is 5 A .<|im_end|>",
        ),
    ] {
        let dir = chatml(template);
        for spaced in [false, true] {
            let file = dir.path().join(TOKENIZER);
            let text = fs::read_to_string(&file).unwrap();
            let (off, on) = ("\"add_prefix_space\":false", "\"add_prefix_space\":true");
            fs::write(&file, if spaced { text.replace(off, on) } else { text }).unwrap();
            let tokenizer = load(&dir);
            let (ids, prompt) = tokenizer.encode_conversation(&Prompt::Text("2+3?".into()), "It is 5").unwrap();
            assert_eq!(ids[..prompt], tokenizer.encode_prompt(&Prompt::Text("2+3?".into())).unwrap());
            assert_eq!(ids, tokenizer.encode(whole).unwrap(), "{template} {spaced}");
        }
    }
}

#[test]
fn a_completion_begins_with_what_the_template_writes_before_the_words() {
    let channel = CHATML.replace("{{ m.content }}", "{{ '<|fim_pad|>' if m.role == 'assistant' }}{{ m.content }}");
    assert_eq!(completion(&load(&chatml(&channel)), "5").unwrap(), [259, 53, 257]);
    assert_eq!(completion(&load(&chatml(CHATML)), "5").unwrap(), [53, 257]);
}

#[test]
fn templates_that_are_not_used_are_told_of() {
    let named = serde_json::json!([{"name": "rag", "template": "x"}, {"name": "tool_use", "template": "y"}]);
    let config = serde_json::json!({"eos_token": "<s>", "chat_template": named});
    let dir = folder(&["<s>"], config, Value::Null);
    let note = |dir: &tempfile::TempDir| load(dir).notes().concat();
    assert!(note(&dir).contains("named rag, tool_use but none named \"default\""), "{}", note(&dir));
    fs::write(dir.path().join(CONFIG), r#"{"eos_token": "<s>"}"#).unwrap();
    assert!(note(&dir).contains("has no chat template"));
}

/// Regression: only the template `default` was read, and neither `chat_template.json` nor the folder of named ones.
#[test]
fn a_template_is_chosen_by_its_name() {
    let named = serde_json::json!([{"name": "default", "template": "list"}, {"name": "rag", "template": "list rag"}]);
    let dir = folder(&["<s>"], serde_json::json!({"eos_token": "<s>", "chat_template": named}), Value::Null);
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let choose = |name: &str| PromptConfig { template: Some(name.into()), ..PromptConfig::default() };
    let render = |tokenizer: Tokenizer| tokenizer.render(&[Message::user("x")], false).unwrap();
    let chosen = |name: &str| load(&dir).with_prompt(&choose(name));
    assert_eq!((render(load(&dir)), render(chosen("rag").unwrap())), ("list".to_string(), "list rag".to_string()));
    write("chat_template.json", r#"{"chat_template": "json"}"#);
    assert_eq!(render(load(&dir)), "list");
    fs::create_dir(dir.path().join("additional_chat_templates")).unwrap();
    write("additional_chat_templates/rag.jinja", "file {{ messages[0].content }}");
    write("additional_chat_templates/tool_use.jinja", "tool");
    assert_eq!(render(chosen("rag").unwrap()), "file x");
    let error = chosen("none").unwrap_err().to_string();
    assert!(error.contains("prompt.template = \"none\" is none of the chat templates in "), "{error}");
    assert!(error.contains(": rag, tool_use, default"), "{error}");
    // The copies of an export have them too.
    let copy = dir.path().join("copy");
    load(&dir).save_to(&copy).unwrap();
    assert_eq!(render(Tokenizer::load(&copy).unwrap().with_prompt(&choose("tool_use")).unwrap()), "tool");
    write(CONFIG, r#"{"eos_token": "<s>"}"#);
    assert_eq!(render(load(&dir)), "json");
    write(CONFIG, r#"{"eos_token": "<s>", "chat_template": [1]}"#);
    let error = Tokenizer::load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json: chat_template = [1] must be a string or a list"), "{error}");
}

#[test]
fn an_adapter_takes_what_it_lacks_from_its_base() {
    let base = chatml(CHATML);
    let adapter = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(adapter.path().join(name), text).unwrap();
    write("adapter_config.json", &serde_json::json!({"base_model_name_or_path": base.path()}).to_string());
    assert_eq!(load(&adapter).stop_ids(), [257, 258]);
    // Its own template, with the base's tokens.
    write(TEMPLATE, "own {{ messages[0].content }}<|im_end|>");
    assert_eq!(load(&adapter).render(&[Message::user("a")], false).unwrap(), "own a<|im_end|>");
    fs::remove_file(adapter.path().join(TEMPLATE)).unwrap();
    fs::write(base.path().join(TEMPLATE), "base").unwrap();
    write(CONFIG, r#"{"eos_token": "<|im_end|>", "chat_template": "own"}"#);
    assert_eq!(load(&adapter).render(&[], false).unwrap(), "own");
    // Its own tokenizer, as PEFT writes it: the stop tokens are still the model's.
    fs::copy(base.path().join(TOKENIZER), adapter.path().join(TOKENIZER)).unwrap();
    assert_eq!(load(&adapter).stop_ids(), [257, 258]);
}
