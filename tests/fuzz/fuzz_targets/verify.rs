//! Fuzzing of answer extraction and equivalence: no panic, no hang, and every answer equals itself.
//!
//! The input is a reference answer, a line feed and a completion.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../../src/verify/mod.rs"]
#[allow(dead_code, unused_imports)]
mod verify;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (gold, completion) = text.split_once('\n').unwrap_or((text, text));
    verify::explain(gold, completion);
    let own = verify::compare(gold, gold);
    assert!(matches!(own, verify::Verdict::Right | verify::Verdict::UnparseableGold), "{gold:?}: {own:?}");
});
