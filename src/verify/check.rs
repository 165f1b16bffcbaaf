//! A gold and an answer as people paste them: bare, or inside a whole completion.

use super::parse::parse;
use super::tree::{Fault, Node};
use super::{Graded, Verdict, compare, gold_answer, grade, stated};

/// Grades an answer that may be bare or a whole, finished completion.
pub fn check(gold: &str, answer: &str) -> Graded {
    let verdict = compare(gold_answer(gold), answer);
    if !verdict.is_right() && !is_bare(answer) {
        return grade(gold, answer, true);
    }
    Graded { strict: verdict, lenient: verdict, extracted: Some(answer.trim().to_string()) }
}

/// Whether a text is an answer by itself: it states none, and is a formula or a few words on one line.
fn is_bare(text: &str) -> bool {
    let formula = || !matches!(parse(text), Ok(Node::Words(_)) | Err(_));
    let marked = text.contains("<think>") || text.contains("</think>");
    !marked
        && stated(text).is_none()
        && !text.trim().contains('\n')
        && (text.split_whitespace().count() <= 4 || formula())
}

/// Says how a gold and an answer, each bare or a whole completion, are read, and what follows from that.
pub fn explain(gold: &str, answer: &str) -> String {
    let found = gold_answer(gold);
    let graded = check(gold, answer);
    let why = match graded.strict {
        Verdict::Right => "they are the same",
        Verdict::Wrong => "they differ",
        Verdict::NoAnswer => "no answer is stated after the thinking",
        Verdict::UnparseableAnswer => "the answer cannot be read, or has no value",
        Verdict::Undecided => "whether they are the same could not be decided in the steps allowed",
        Verdict::UnparseableGold => "the gold cannot be read, or has no value",
    };
    let extracted = graded.extracted.unwrap_or_default();
    let mut text = format!("gold    {found}\n  read  {}\n", reading(found));
    if extracted.is_empty() {
        text.push_str("answer  none found\n");
    } else {
        text.push_str(&format!("answer  {extracted}\n  read  {}\n", reading(&extracted)));
    }
    text.push_str(&format!("strict  {}: {why}\nlenient {}", graded.strict.name(), graded.lenient.name()));
    text
}

fn reading(text: &str) -> String {
    match parse(text) {
        Ok(node) => format!("{} {node}", node.kind()),
        Err(Fault::Limit) => "nothing: it is too large or nests too deeply".to_string(),
        Err(_) => "nothing: not the notation of an answer; only the same characters equal it".to_string(),
    }
}
