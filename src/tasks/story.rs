//! Word problems with a distractor: a sentence with an irrelevant number.

use super::steps::{Op, Operand::Given, SolutionPlan, Tail};
use super::{Draft, Stream};

pub(super) fn draw(difficulty: u8, random: &mut Stream) -> Draft {
    let mut plan = SolutionPlan::new(Tail::Nothing);
    let name = *random.choose(&["Tom", "Ann", "Ben", "Eva"]);
    let thing = *random.choose(&["pens", "cards", "apples", "books"]);
    let n = random.range(3, 9);
    let m = random.range(3, 9);
    let each = random.range(if difficulty == 1 { 3 } else { 12 }, if difficulty == 1 { 9 } else { 59 });
    let given = random.range(11, 49);
    let aside = random.range(5, 29);
    let (story, ask, goal) = match (difficulty, random.range(0, 1)) {
        (1, 0) => {
            let held = plan.push(Op::Mul, Given(n), Given(each), "all of them");
            plan.push(Op::Add, held, Given(given), "the total");
            let story = format!("{name} has {n} boxes of {each} {thing} and {given} more.");
            (story, format!("How many {thing} in total?"), format!("the total number of {thing}"))
        }
        (1, _) | (2, 1) => {
            let all = given + each * n;
            let rest = plan.push(Op::Sub, Given(all), Given(given), "what is left");
            plan.push(Op::Div, rest, Given(n), "each share");
            let story = format!("{name} has {all} {thing}, keeps {given} and splits the rest among {n} friends.");
            (story, format!("How many {thing} does each get?"), format!("the number of {thing} for each friend"))
        }
        (2, _) => {
            let gone = given.min(n * each - 1);
            let held = plan.push(Op::Mul, Given(n), Given(each), "all of them");
            plan.push(Op::Sub, held, Given(gone), "what is left");
            let story = format!("{name} has {n} boxes of {each} {thing} and gives away {gone}.");
            (story, format!("How many {thing} are left?"), format!("the number of {thing} left"))
        }
        (3, 0) => {
            let price = random.range(3, 9);
            let first = plan.push(Op::Mul, Given(n), Given(each), "the first cost");
            let second = plan.push(Op::Mul, Given(m), Given(price), "the second cost");
            plan.push(Op::Add, first, second, "the total");
            let story = format!("{name} buys {n} {thing} for {each} coins each and {m} boxes for {price} each.");
            (story, "How many coins in total?".into(), "the total number of coins".into())
        }
        (3, _) => {
            let whole = n * each + given + random.range(11, 99);
            let driven = plan.push(Op::Mul, Given(n), Given(each), "the main part");
            let driven = plan.push(Op::Add, driven, Given(given), "the total");
            plan.push(Op::Sub, Given(whole), driven, "what is left");
            let story = format!("Of {whole} {thing}, {name} gives away {n} boxes of {each} and {given} more.");
            (story, format!("How many {thing} are left?"), format!("the number of {thing} left"))
        }
        (_, kind) => {
            let price = random.range(3, (n * each / m).min(19));
            let held = plan.push(Op::Mul, Given(n), Given(each), "the main part");
            let held = plan.push(Op::Add, held, Given(given), "the total");
            let spent = plan.push(Op::Mul, Given(m), Given(price), "the cost");
            plan.push(Op::Sub, held, spent, "what is left");
            let unit = if kind == 0 { "coins" } else { thing };
            let story = if kind == 0 {
                format!("{name} has {n} boxes of {each} coins and {given} more and buys {m} {thing} for {price} each.")
            } else {
                format!("{name} has {n} boxes of {each} {thing} and {given} more. {m} friends get {price} each.")
            };
            (story, format!("How many {unit} are left?"), format!("the number of {unit} left"))
        }
    };
    let distractor = match random.range(0, 2) {
        0 => format!("{name} is {aside}."),
        1 => format!("It is day {aside}."),
        _ => format!("There are {aside} cups."),
    };
    let question =
        if random.chance(0.5) { format!("{distractor} {story} {ask}") } else { format!("{story} {distractor} {ask}") };
    Draft { question, goal, approach: "I only use the numbers that matter.", plan }
}
