//! Dependencies between the modules ("rooms") of `src/`: a room uses only rooms of lower layers ("floors"), so that it
//! can be read without those above it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::repository;

/// Floors from the lowest to the highest. The rooms of a floor do not use each other.
const FLOORS: [&[&str]; 20] = [
    &["error"],
    &["contain", "noise", "files", "json", "stop", "ranks", "threads"],
    &["metrics", "config", "device", "hub"],
    &["verify"],
    &["text"],
    &["tasks"],
    &["data"],
    &["ops"],
    &["model"],
    &["optim", "generate"],
    &["reward"],
    &["objective"],
    &["conflict", "stage"],
    &["rollout"],
    &["eval"],
    &["train"],
    &["doctor", "study"],
    &["bench"],
    &["report"],
    &["cli"],
];

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

/// Return the room of a file: its folder below `src/`, or its own name.
fn room(file: &Path, root: &Path) -> String {
    let inside = file.strip_prefix(root).unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_string()
}

/// Return the rooms that code uses by `crate::room`. Comments and unit tests are ignored.
fn used(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]").next().unwrap();
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let rooms = lines.flat_map(|line| line.split("crate::").skip(1));
    let name = |rest: &str| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    rooms.map(name).filter(|room| floor(room).is_some()).collect()
}

#[test]
fn rooms_use_lower_floors_only() {
    let root = repository("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut arrows = Vec::new();
    for file in files {
        let from = room(&file, &root);
        if matches!(from.as_str(), "lib" | "main") {
            continue;
        }
        let own = floor(&from).unwrap_or_else(|| panic!("src/{from} stands on no floor of tests/layers.rs"));
        let up = used(&fs::read_to_string(&file).unwrap()).into_iter().filter(|to| *to != from);
        let up = up.filter(|to| floor(to).unwrap() >= own);
        arrows.extend(up.map(|to| format!("{} uses {to}", file.strip_prefix(&root).unwrap().display())));
    }
    assert!(arrows.is_empty(), "arrows that go up:\n{}", arrows.join("\n"));
}
