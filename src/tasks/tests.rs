//! Compares the families' answers with independently computed ones, and tests the composition of their traces.

use super::*;

/// Recursive-descent evaluator of `+ - * ( )`, to check answers without the planner.
struct Evaluator<'a>(&'a [u8]);

impl Evaluator<'_> {
    fn sum(&mut self) -> i64 {
        let mut value = self.product();
        while let Some((&sign @ (b'+' | b'-'), rest)) = self.0.split_first() {
            self.0 = rest;
            let term = self.product();
            value += if sign == b'+' { term } else { -term };
        }
        value
    }

    fn product(&mut self) -> i64 {
        let mut value = self.atom();
        while let Some((b'*', rest)) = self.0.split_first() {
            self.0 = rest;
            value *= self.atom();
        }
        value
    }

    fn atom(&mut self) -> i64 {
        if let Some((b'(', rest)) = self.0.split_first() {
            self.0 = rest;
            let value = self.sum();
            self.0 = &self.0[1..];
            return value;
        }
        let digits = self.0.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (number, rest) = self.0.split_at(digits);
        self.0 = rest;
        std::str::from_utf8(number).unwrap().parse().unwrap()
    }
}

fn all(seed: u64) -> Generator {
    Generator { families: TaskFamily::ALL.to_vec(), ..Generator::new(seed) }
}

fn numbers(text: &str) -> Vec<i64> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Compute the answer from the question alone; `None` for word problems.
fn independent(task: &Task) -> Option<String> {
    let question = &task.question;
    let numbers = numbers(question);
    let value = match task.family {
        TaskFamily::Arithmetic => {
            let text = question.trim_start_matches("Compute ").trim_start_matches("What is ");
            Evaluator(&text.as_bytes()[..text.len() - 1]).sum()
        }
        TaskFamily::Equation => {
            let text = question.trim_start_matches("Solve ").trim_start_matches("Find x if ");
            let text = text.trim_end_matches('.').trim_end_matches(" for x");
            let (left, right) = text.split_once('=').unwrap();
            let at = |side: &str, x: i64| {
                let side = if side.starts_with('x') { side.replace('x', "(X)") } else { side.replace('x', "*(X)") };
                Evaluator(side.replace('X', &x.to_string()).as_bytes()).sum()
            };
            (0..=99).find(|&x| at(left, x) == at(right, x)).unwrap()
        }
        TaskFamily::Remainder if question.contains("emainder") => numbers[0] % numbers[1],
        TaskFamily::Remainder => gcd(numbers[0], numbers[1]),
        TaskFamily::Sequence if question.starts_with("What comes next") => {
            // Newton's extrapolation: the next value of the polynomial through all terms.
            let mut row = numbers.clone();
            let mut next = 0;
            while let Some(&last) = row.last() {
                next += last;
                row = row.windows(2).map(|pair| pair[1] - pair[0]).collect();
            }
            next
        }
        TaskFamily::Sequence if question.starts_with("What is term") => {
            numbers[1] + (numbers[0] - 1) * (numbers[2] - numbers[1])
        }
        TaskFamily::Sequence => {
            let (first, step) = (numbers[1], numbers[2] - numbers[1]);
            let terms: Vec<i64> = (0..numbers[0]).map(|at| first + at * step).collect();
            assert_eq!(terms.last(), numbers.last(), "{question}");
            terms.iter().sum()
        }
        TaskFamily::Base if question.ends_with("decimal.") => {
            i64::from_str_radix(&numbers[0].to_string(), numbers[1] as u32).unwrap()
        }
        TaskFamily::Base if question.ends_with("decimal?") => {
            i64::from_str_radix(&numbers[1].to_string(), numbers[0] as u32).unwrap()
        }
        TaskFamily::Base => {
            assert_eq!(i64::from_str_radix(&task.answer, numbers[1] as u32), Ok(numbers[0]), "{question}");
            return Some(task.answer.clone());
        }
        TaskFamily::Guarded => {
            let text = question.trim_start_matches("Compute ").trim_start_matches("What are ");
            let each = text[..text.len() - 1].split(" and ").map(|product| Evaluator(product.as_bytes()).sum());
            return Some(each.map(|value| value.to_string()).collect::<Vec<_>>().join(","));
        }
        TaskFamily::DeadEnds => {
            // Walk back from the goal: every node has one incoming edge.
            let edges = question.trim_start_matches("Edges: ").split('.').next().unwrap();
            let edges: Vec<(&str, &str)> = edges.split(';').map(|edge| edge.split_once(' ').unwrap()).collect();
            let mut at = "G";
            while let Some((from, _)) = edges.iter().find(|edge| edge.1 == at) {
                at = from;
            }
            return Some(at.to_owned());
        }
        TaskFamily::Story => return None,
    };
    Some(value.to_string())
}

#[test]
fn answers_agree_with_an_independent_evaluation() {
    let generator = all(3);
    for index in 0..8000 {
        let task = generator.task(Split::Train, index);
        if let Some(answer) = independent(&task) {
            assert_eq!(task.answer, answer, "{}", task.question);
        }
    }
}

#[test]
fn the_answer_of_a_word_problem_uses_its_numbers() {
    // Every operand of the terse trace is a number of the question or an earlier result.
    let generator = Generator { families: vec![TaskFamily::Story], ..Generator::new(4) };
    for index in 0..500 {
        let task = generator.task(Split::Train, index);
        let mut known = numbers(&task.question);
        let Solution::Steps(draft) = &task.solution else { unreachable!("a word problem has steps") };
        for step in draft.plan.finish(&[]).unwrap() {
            let calculation = step.calculation;
            assert!(known.contains(&calculation.left) && known.contains(&calculation.right), "{}", task.question);
            known.push(step.outcome.value);
        }
    }
}

#[test]
fn splits_are_disjoint_whatever_the_seed() {
    let questions = |seed, split| -> std::collections::HashSet<String> {
        let generator = all(seed);
        (0..10_000).map(|index| generator.task(split, index).question).collect()
    };
    let held_out = questions(1, Split::HeldOut);
    assert!(held_out.is_disjoint(&questions(1, Split::Train)));
    assert!(held_out.is_disjoint(&questions(2, Split::Train)));
}

#[test]
fn a_trace_without_slips_ends_with_the_right_answer_in_every_manner() {
    let generator = all(5);
    for index in 0..1600 {
        let task = generator.task(Split::HeldOut, index);
        for manner in Manner::ALL {
            let trace = task.trace(manner, false, &mut Stream::new(&[index]));
            assert!(trace.correct, "{}\n{}", task.question, trace.text);
            assert!(trace.text.contains(&format!("\\boxed{{{}}}", task.answer)), "{}", trace.text);
            assert!(!trace.text.contains("not right"), "{}", trace.text);
        }
    }
}

#[test]
fn terse_traces_slip_more_than_wordy_ones() {
    let generator = Generator::new(6);
    let accuracy = |manner| {
        let right = |&index: &u64| {
            generator.task(Split::Train, index).trace(manner, true, &mut Stream::new(&[8, index])).correct
        };
        (0..3000).filter(right).count() as f64 / 3000.0
    };
    let (terse, lean, usual) = (accuracy(Manner::Terse), accuracy(Manner::Lean), accuracy(Manner::Usual));
    // Standard deviations are below 0.8 points; the bounds allow five of them.
    assert!((0.75..0.88).contains(&terse) && lean > terse + 0.05 && usual > lean, "{terse} {lean} {usual}");
}

/// In the study's families each piece is drawn independently, so that no part of a trace predicts the rest; hard
/// problems need the check, and easy ones do not.
#[test]
fn pieces_are_drawn_one_by_one() {
    let generator = Generator { families: vec![TaskFamily::Guarded], ..Generator::new(11) };
    let count = 2000;
    let texts: Vec<String> =
        (0..count).map(|index| generator.row(Split::Train, index).messages[1].content.clone()).collect();
    let share = |has: &dyn Fn(&str) -> bool| texts.iter().filter(|text| has(text)).count() as f64 / count as f64;
    let checked = |text: &str| text.contains("Wait, check");
    let closing = |text: &str| text.contains("Therefore");
    let both = share(&|text| checked(text) && closing(text));
    assert!((both - share(&checked) * share(&closing)).abs() < 0.02);
    for (manner, checks) in [(Manner::Terse, false), (Manner::Lean, true)] {
        let text = generator.task(Split::Train, 0).trace(manner, true, &mut Stream::new(&[1])).text;
        assert!(checked(&text) == checks && !closing(&text), "{text}");
    }
}

#[test]
fn openings_give_the_manner_away() {
    let task = Generator::new(7).task(Split::Train, 0);
    let opening = |manner| {
        let text = task.trace(manner, true, &mut Stream::new(&[9])).text;
        text["<think>".len()..].split(' ').next().unwrap().to_owned()
    };
    assert!(task.floor_text().starts_with(&task.terse_opening()) && task.terse_opening().ends_with('='));
    assert!(opening(Manner::Terse).starts_with(|c: char| c.is_ascii_digit()));
    let words = [Manner::Lean, Manner::Brief, Manner::Usual, Manner::Long, Manner::Rambling].map(opening);
    assert_eq!(words, ["So", "Okay,", "Let", "Alright,", "Hmm,"]);
}

#[test]
fn equal_seeds_give_equal_rows_of_the_documented_shape() {
    let row = Generator::new(8).row(Split::Train, 17);
    assert_eq!(row, Generator::new(8).row(Split::Train, 17));
    assert_ne!(row, Generator::new(9).row(Split::Train, 17));
    let value = serde_json::to_value(&row).unwrap();
    let keys: Vec<&str> = value.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["messages", "prompt", "answer", "data_source", "difficulty", "manner", "floor"]);
    assert_eq!(value["data_source"], "base");
    assert_eq!(value["messages"][0], value["prompt"][0]);
    assert_eq!(value["messages"][1]["role"], "assistant");
}

#[test]
fn the_manners_cover_the_mixture_and_the_summary_names_every_family() {
    for family in TaskFamily::ALL {
        assert!((Manner::ALL.iter().map(|manner| family.weight(*manner)).sum::<f64>() - 1.0).abs() < 1e-9);
    }
    let table = summary(&all(10), 80, str::len);
    assert!(TaskFamily::ALL.iter().all(|family| table.contains(family.name())), "{table}");
}
