//! The verifier on graded pairs, on answers of published benchmarks, and from the command line.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use tempering::data::{Fields, load_problems};
use tempering::verify::{Verdict, check, compare};

use crate::support::{Workshop, read_lines, repository};

/// Return the rows of the table: kind, reference answer, answer, whether they are equal.
fn table() -> Vec<(String, String, String, bool)> {
    let text = std::fs::read_to_string(repository("assets/answers.tsv")).unwrap();
    let rows = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let cells: Vec<&str> = line.split('\t').collect();
        let [kind, gold, answer, verdict @ ("equal" | "unequal")] = cells[..] else { panic!("{line:?}") };
        (kind.to_string(), gold.to_string(), answer.to_string(), verdict == "equal")
    });
    rows.collect()
}

/// Return the distinct reference answers of all benchmark files; empty if the files are absent.
fn benchmark_golds(test: &str) -> BTreeSet<String> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/data");
    if !root.is_dir() {
        eprintln!("SKIPPED {test}: no folder {}", root.display());
        return BTreeSet::new();
    }
    let files = [
        "gsm8k/train.jsonl",
        "gsm8k/test.jsonl",
        "benchmarks/aime24.jsonl",
        "benchmarks/aime25.jsonl",
        "benchmarks/amc23.jsonl",
        "benchmarks/math500.jsonl",
        "benchmarks/minerva_math.jsonl",
        "benchmarks/olympiadbench.jsonl",
    ];
    let problems = files.iter().flat_map(|file| load_problems(&root.join(file), &Fields::default()).unwrap());
    problems.map(|problem| problem.answer).collect()
}

#[test]
fn graded_pairs_get_their_verdicts() {
    let rows = table();
    assert!(rows.len() >= 600, "{} rows", rows.len());
    let wrong: Vec<String> = (rows.iter())
        .filter_map(|(kind, gold, answer, equal)| {
            let verdict = compare(gold, answer);
            let expected = if *equal { Verdict::Right } else { Verdict::Wrong };
            (verdict != expected).then(|| format!("{kind}: gold {gold}, answer {answer}: {}", verdict.name()))
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}

#[test]
fn every_side_of_the_table_equals_itself_however_it_is_spaced() {
    let mut wrong = Vec::new();
    // Markdown asterisks are stripped only at the very ends, so such texts are excluded.
    let texts = table().into_iter().flat_map(|(_, gold, answer, _)| [gold, answer]).filter(|text| !text.contains("**"));
    for text in texts {
        for variant in [format!(" {text} "), format!("${text}$"), format!("\\boxed{{{text}}}"), format!("\\, {text}.")]
        {
            if !check(&text, &variant).strict.is_right() {
                wrong.push(format!("{text} against {variant}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Except for rounded reference answers: a decimal accepts values that round to it, but not vice versa.
#[test]
fn the_order_of_the_two_does_not_matter() {
    let decimal = |text: &str| text.split('.').skip(1).any(|part| part.starts_with(|c: char| c.is_ascii_digit()));
    let rows = table();
    let rows = rows.iter().filter(|(_, gold, answer, _)| !decimal(gold) && !decimal(answer));
    let wrong: Vec<_> = rows.filter(|(_, gold, answer, equal)| compare(answer, gold).is_right() != *equal).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

#[test]
fn benchmark_golds_equal_themselves_and_no_other() {
    let golds: Vec<String> = benchmark_golds("benchmark_golds").into_iter().collect();
    let wrong: Vec<&String> = golds.iter().filter(|gold| !compare(gold, &format!(" {gold} ")).is_right()).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    // Known pairs of equal answers in different spellings.
    let known = COINCIDENCES.map(|(a, b)| (a.to_string(), b.to_string()));
    let mut found = BTreeSet::new();
    for shift in [1, 2, 3, 7, 50, 211, 500] {
        for (index, gold) in golds.iter().enumerate() {
            let other = &golds[(index + shift) % golds.len()];
            if gold != other && compare(gold, other).is_right() {
                found.insert(if gold < other { (gold.clone(), other.clone()) } else { (other.clone(), gold.clone()) });
            }
        }
    }
    let new: Vec<_> = found.iter().filter(|pair| !known.contains(pair)).collect();
    assert!(new.is_empty(), "{new:#?}");
}

const COINCIDENCES: [(&str, &str); 5] =
    [("-2", "-2,-2"), ("145", "145^\\circ"), ("2,3,4", "2,4,3"), ("56", "56.0"), ("864", "864 \\mbox{ inches}^2")];

/// Return a random formula in two spellings.
fn spellings(dice: &mut impl FnMut(u64) -> u64, depth: u64) -> (String, String) {
    if depth == 0 {
        let leaf = match dice(6) {
            0 => "x".to_string(),
            1 => "y".to_string(),
            2 => "\\pi".to_string(),
            _ => (dice(20) + 1).to_string(),
        };
        return (leaf.clone(), format!("{{{leaf}}}"));
    }
    let (a, b) = spellings(dice, depth - 1);
    let (c, d) = spellings(dice, depth - 1);
    let n = dice(3) + 2;
    match dice(7) {
        0 => (format!("{a} + {c}"), format!("{d}+{b}")),
        1 => (format!("({a}) - ({c})"), format!("-\\left({d}\\right)+\\left({b}\\right)")),
        2 => (format!("({a})({c})"), format!("({d}) \\cdot ({b})")),
        3 => (format!("\\frac{{{a}}}{{{n}}}"), format!("({b})/{n}")),
        4 => (format!("({a})^2"), format!("({b}) \\times ({b})")),
        5 => (format!("\\sin({a})"), format!("-\\sin(-({b}))")),
        _ => (format!("\\sqrt{{{n}}}({a})"), format!("({b}) \\cdot {n}^{{\\frac12}}")),
    }
}

#[test]
fn spellings_of_one_formula_are_equal_and_others_are_not() {
    let mut state = 1u64;
    let mut dice = |sides: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % sides
    };
    for round in 0..400 {
        let (left, right) = spellings(&mut dice, 1 + round % 3);
        assert_eq!(compare(&left, &right), Verdict::Right, "{left} against {right}");
        assert_eq!(compare(&right, &left), Verdict::Right, "{right} against {left}");
        let wide = right.replace('+', " \\, + \\; ").replace('(', "( ");
        assert_eq!(compare(&left, &wide), Verdict::Right, "{left} against {wide}");
        let other = format!("{right}+1");
        assert_eq!(compare(&left, &other), Verdict::Wrong, "{left} against {other}");
    }
}

#[test]
fn the_command_explains_one_pair_and_grades_a_file() {
    let workshop = Workshop::new();
    let run = |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_tempering")).arg("verify").args(args).output().unwrap();
    let one = run(&["--gold", "\\frac12", "--answer", "so it is \\boxed{0.5}"]);
    let text = String::from_utf8(one.stdout).unwrap();
    assert!(one.status.success() && text.contains("answer  0.5") && text.contains("strict  right"), "{text}");

    let rows = [
        json!({ "gold": "so\n#### 5", "answer": "<think>2+3</think>\\boxed{5}" }),
        json!({ "gold": "5", "answer": "I think that it should be about 5." }),
        json!({ "gold": "5", "answer": 6, "id": 3 }),
        json!({ "gold": "5", "answer": "<think>\\boxed{5}" }),
    ];
    let file = workshop.write_lines("pairs.jsonl", rows);
    let output = workshop.path("graded.jsonl");
    assert!(run(&["--file", file.to_str().unwrap(), "-o", output.to_str().unwrap()]).status.success());
    let graded = read_lines(&output);
    let summary: Vec<Value> = graded.iter().map(|row| json!([row["strict"], row["lenient"], row["outcome"]])).collect();
    let expected = [
        json!([true, true, "right"]),
        json!([false, true, "no_answer"]),
        json!([false, false, "wrong"]),
        json!([false, true, "no_answer"]),
    ];
    assert_eq!(summary, expected);
    assert_eq!(graded[2]["id"], 3);

    for (row, message) in [
        ("{\"gold\": \"5\"}", "no field answer"),
        ("[1]", "one JSON object"),
        ("{\"gold\": [], \"answer\": \"5\"}", "gold: expected a string"),
    ] {
        std::fs::write(&file, format!("{{\"gold\": \"5\", \"answer\": \"5\"}}\n\n{row}\n")).unwrap();
        let ended = run(&["--file", file.to_str().unwrap()]);
        let error = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(2), "{error}");
        assert!(error.contains("pairs.jsonl:3: ") && error.contains(message), "{error}");
    }
}
