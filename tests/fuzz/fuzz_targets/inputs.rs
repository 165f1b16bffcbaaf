//! Fuzzing of user files: any content is read or rejected, in bounded memory and time.
//!
//! `TEMPERING_FUZZ` is the file kind of the input: `safetensors`, `config`, `tokenizer`, `template`, `chat`, `rows`,
//! `parquet` or `settings`.

#![no_main]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tempering::config;
use tempering::data::{Fields, Message, load_conversations, load_problems};
use tempering::model::{self, CausalLm, ModelConfig};
use tempering::text::chat::{ChatTemplate, SpecialTokens};
use tempering::text::tokenizer::Tokenizer;
use tempering::train::RlConfig;

/// File kind, and the folder to write the input into: the embedded tokenizer and a model with one layer.
static PLACE: LazyLock<(String, PathBuf)> = LazyLock::new(|| {
    let kind = std::env::var("TEMPERING_FUZZ").expect("TEMPERING_FUZZ names a kind of file");
    let folder = std::env::temp_dir().join(format!("tempering-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/base");
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        std::fs::copy(base.join(name), folder.join(name)).unwrap();
    }
    let small = ModelConfig::qwen2(512, 8, 8, 1, 2, 1);
    model::save(&folder, &small, &CausalLm::random(&small, 1, &device())).unwrap();
    (kind, folder)
});

fn device() -> burn::tensor::Device {
    tempering::device::parse("cpu").unwrap()
}

fuzz_target!(|data: &[u8]| {
    let (kind, folder) = &*PLACE;
    let file = |name: &str| {
        let path = folder.join(name);
        std::fs::write(&path, data).unwrap();
        path
    };
    match kind.as_str() {
        "safetensors" => {
            file("model.safetensors");
            drop(model::load(folder, &device()));
        }
        "config" => {
            file("config.json");
            if let Ok(config) = ModelConfig::load(folder) {
                assert_eq!(config.mistakes(), Vec::<String>::new());
            }
        }
        "tokenizer" => {
            file("tokenizer.json");
            if let Ok(tokenizer) = Tokenizer::load(folder) {
                drop(tokenizer.encode("Solve 9x+89=4x+134 for x. <|im_end|>é"));
            }
        }
        "template" => {
            let Ok(source) = std::str::from_utf8(data) else { return };
            if let Ok(template) = ChatTemplate::new(source, Path::new("x.jinja"), SpecialTokens::default()) {
                drop(template.render(&[Message::user("2+3?"), Message::new("assistant", "5")], true));
            }
        }
        // The turns of a chat, one per line, rendered with the embedded template.
        "chat" => {
            static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| Tokenizer::load(&PLACE.1).unwrap());
            let Ok(text) = std::str::from_utf8(data) else { return };
            let roles = ["system", "user", "assistant"].into_iter().cycle();
            let turns: Vec<Message> = roles.zip(text.split('\n')).map(|(role, text)| Message::new(role, text)).collect();
            if let Ok(rendered) = TOKENIZER.render(&turns, true) {
                drop(TOKENIZER.encode(&rendered));
            }
        }
        "rows" => {
            let path = file("rows.jsonl");
            drop(load_problems(&path, &Fields::default()));
            drop(load_conversations(&path));
        }
        "parquet" => drop(load_problems(&file("rows.parquet"), &Fields::default())),
        "settings" => drop(config::load::<RlConfig>(Some(&file("settings.toml")), &[])),
        other => panic!("TEMPERING_FUZZ = {other}"),
    }
});
