//! Tests of the whole module.

use super::*;

#[test]
fn strict_and_lenient_readings_differ_where_format_does() {
    use Verdict::{NoAnswer, Right, UnparseableAnswer, UnparseableGold, Wrong};
    let table = [
        ("5", "<think>2+3</think>\\boxed{5}", true, Right, Right),
        ("5", "2+3</think>\\boxed{5}", true, Right, Right),
        ("5", "<think>2+3</think>It is 5.", true, NoAnswer, Right),
        ("5", "<think>2+3 = \\boxed{5}", true, NoAnswer, Right),
        ("5", "<think>2+3 = \\boxed{5}</think> done", true, NoAnswer, Right),
        ("5", "<think>2+3</think>\\boxed{5}", false, NoAnswer, Right),
        // UniRL#360: an intermediate value of a truncated trace must not count.
        ("5", "<think>first 5", false, NoAnswer, Right),
        ("5", "<think>\\boxed{5}</think>\\boxed{6}", true, Wrong, Wrong),
        ("5", "<think>a</think><think>b \\boxed{5}", true, NoAnswer, Right),
        // The prompt opened the thinking; the completion never closes it, or the model does not think.
        ("5", "<think>\n2+3=5, so \\boxed{5}", true, NoAnswer, Right),
        ("5", "<think>\n\n</think>\n\n2+3=5, so \\boxed{5}", true, Right, Right),
        ("5", "2+3=5, so \\boxed{5}", true, Right, Right),
        ("5", "</think>\\boxed{}", true, UnparseableAnswer, UnparseableAnswer),
        ("5", "\\boxed{1/0}", true, UnparseableAnswer, UnparseableAnswer),
        ("5", "no idea", true, NoAnswer, NoAnswer),
        ("", "\\boxed{5}", true, UnparseableGold, UnparseableGold),
        ("$$", "no idea", true, UnparseableGold, UnparseableGold),
        ("1/0", "\\boxed{5}", true, UnparseableGold, UnparseableGold),
        ("so 2+3\n#### 5", "#### 5", true, Right, Right),
        ("thus \\boxed{\\frac12}", "\\boxed{0.5}", true, Right, Right),
        // The lenient grade takes the whole last formula, or the right-hand side of a derivation.
        ("12", "</think>so $\\frac{7}{12}$ of them", true, NoAnswer, Wrong),
        ("\\frac{7}{12}", "</think>so $\\frac{7}{12}$ of them", true, NoAnswer, Right),
        ("\\frac{7}{12}", "</think>so $\\sin t = \\frac{14}{24} = \\frac{7}{12}$.", true, NoAnswer, Right),
        ("x > 4", "</think>Hence x > 4 for all of them.", true, NoAnswer, Right),
        ("x > 4", "</think>Hence x < 4 for all of them.", true, NoAnswer, Wrong),
        ("(2,3]", "</think>it is the interval (2, 3].", true, NoAnswer, Right),
        ("-4", "</think>it is minus 4 outside", true, NoAnswer, Right),
        ("4", "</think>it is minus 4 outside", true, NoAnswer, Wrong),
        ("7", "Answer: let us see how far we get.\nFirst 3, then 4 more: 7", true, NoAnswer, Right),
        ("4", "Answer: Ann waits 4 hours there", true, UnparseableAnswer, Right),
        ("5", "Answer: Let me see. It is 2 + 3 = 5", true, Wrong, Right),
        ("0.5", "The answer is .5.", true, Right, Right),
        ("all of them are odd", "Answer: All of them are odd.", true, Right, Right),
        // The question asks for a sum of symbols.
        ("9", "\\boxed{m+n = 9}", true, Right, Right),
        ("m+n = 9", "\\boxed{9}", true, Wrong, Wrong),
        ("5", "\\boxed{m+n = 5+4 = 9}", true, Wrong, Wrong),
        // Only the lenient grade takes the last side of a chain that contradicts itself.
        ("11", "\\boxed{x = 7 = 11}", true, Wrong, Right),
        ("7", "\\boxed{x = 7 = 11}", true, Wrong, Wrong),
        ("x = 11", "so $x = 5+5+1 = 7 = 11$", true, NoAnswer, Right),
        ("\\frac{1}{3}", "\\boxed{x = 2 = \\frac{1}{3} \\approx 11.5}", true, Wrong, Right),
        ("z = 1+1 = 2", "\\boxed{z = 3+3 = 2}", true, Wrong, Right),
        ("2", "\\boxed{x = 1, y = 2}", true, Wrong, Wrong),
    ];
    for (gold, completion, finished, strict, lenient) in table {
        let graded = grade(gold, completion, finished);
        assert_eq!((graded.strict, graded.lenient), (strict, lenient), "{completion:?}: {graded:?}");
    }
    assert_eq!(grade("5", "x \\boxed{6}", true).extracted.as_deref(), Some("6"));
    let long = format!("\\boxed{{{}}}", "1".repeat(MAX_ANSWER + 1));
    assert_eq!(grade("5", &long, true).strict, UnparseableAnswer);
}

#[test]
fn long_lists_compare_in_any_order() {
    let list = |range: std::ops::Range<i32>, show: &dyn Fn(i32) -> String| range.map(show).collect::<Vec<_>>();
    let plain = |n: i32| n.to_string();
    let half = |n: i32| format!("\\frac{{{n}}}{{2}}");
    for (gold, mut answer) in [
        (list(1..400, &plain), list(1..400, &|n| format!("{n}.0"))),
        (list(1..150, &half), list(1..150, &|n| format!("{n}/2"))),
        (list(1..150, &|n| format!("({n},{})", n * n)), list(1..150, &|n| format!("({n}, {})", n * n))),
    ] {
        answer.reverse();
        assert_eq!(compare(&gold.join(", "), &answer.join(", ")), Verdict::Right, "{}", gold[1]);
        answer[7] = "7000".to_string();
        assert_eq!(compare(&gold.join(", "), &answer.join(", ")), Verdict::Wrong, "{}", gold[1]);
    }
}

#[test]
fn what_is_too_large_or_too_deep_is_undecided() {
    let nested = |open: &str, close: &str| format!("{}2{}", open.repeat(400), close.repeat(400));
    // Each level contains the previous one twice: 2^40 roots when expanded.
    let doubled = (0..40).fold("2".to_string(), |inner, _| format!("\\sqrt{{{inner}+\\pi}}"));
    #[rustfmt::skip]
    let texts = [
        "2^{2^{100}}".to_string(), "10^{10^{10}}".into(), "1e999999999".into(), "100000!".into(), "((9!)!)!".into(),
        "(a+b+c+d+e+f)^{60}".into(), "\\binom{10^9}{10^8}".into(), nested("(", ")"), nested("\\sqrt{", "}"),
        nested("\\frac{1}{", "}"), nested("-(", ")"), nested("x^{", "}"), doubled,
    ];
    for text in &texts {
        let verdict = compare("\\sqrt{3}", text);
        assert!(matches!(verdict, Verdict::Undecided | Verdict::Wrong), "{text:.40}: {verdict:?}");
        assert_eq!(compare(text, text), Verdict::Right, "{text:.40}");
    }
    assert_eq!(compare("7", "2^{2^{100}}"), Verdict::Undecided);
    assert_eq!(compare("7", &texts[7]), Verdict::Undecided);
}

#[test]
fn hostile_texts_come_to_an_end() {
    #[rustfmt::skip]
    let texts = [
        "\\boxed{".repeat(200_000), "}".repeat(1_000_000), "\\".repeat(1_000_001), "1,".repeat(500_000),
        "<answer>".repeat(200_000), "final answer is".repeat(100_000), "#### ".repeat(200_000), "9".repeat(1_000_000),
        "é−日\\é".repeat(100_000), "\\text{".repeat(500), "1/".repeat(2000), "\\$".repeat(2000), "-".repeat(4000),
        "5!".repeat(2000), "|".repeat(4000), "\\begin{pmatrix}".repeat(200), "1^".repeat(2000), "\\sin ".repeat(800),
        "\\frac".into(), "_".into(), "answer:".repeat(100_000), "the answer is ".repeat(100_000),
        "the answer is\n".repeat(100_000), "答案是".repeat(100_000), "$".repeat(1_000_000), "$x$ and ".repeat(100_000),
        "$ a b $".repeat(100_000), "\\(".repeat(300_000), "\\[ 1 \\]".repeat(100_000),
        "\\boxed{1} and ".repeat(100_000), format!("{}{}", "\\boxed{".repeat(50_000), "}".repeat(50_000)),
        "1 for all x, ".repeat(300), "(checked)".repeat(400), "[".repeat(4000), "]".repeat(4000),
        "x>1 or ".repeat(600), "x>1, ".repeat(600), "x=1, y=2 or ".repeat(300), "0:".repeat(1000),
        "5 and ".repeat(600), format!("5 \\text{{{}}}", "and ".repeat(1000)), "(-\\infty,1),".repeat(250),
        "\\pm 1, ".repeat(400), "a = ".repeat(900), "\\text{Sum} = ".repeat(300), "5\\frac{\\text{m}}".repeat(200),
        "\\over ".repeat(500), "\\phantom{".repeat(400), "(or ".repeat(900), "3:45:".repeat(700),
        "x mod ".repeat(600), "5 feet ".repeat(500), "\\begin{vmatrix}1&2\\\\3&4\\end{vmatrix}".repeat(90),
        "C_".repeat(2000), "C_{".repeat(1300), "{}_".repeat(1300), "\\left<".repeat(600), "1 (a) ".repeat(600),
        "sinx".repeat(1000), "a=b=".repeat(900), "(((1)_2)_3)_4".repeat(300), "5\\frac{km}".repeat(300),
        "0 x 10^".repeat(500), "N^9".repeat(600), "twenty ".repeat(500), "选".repeat(300_000), "故选：".repeat(100_000),
        "[1,2;".repeat(700), "[1,2;3,4];".repeat(300), "1\\;".repeat(1300), "x=1,y=2;".repeat(8), "x=1,y=2;".repeat(400),
        "1 ≈ ".repeat(600), "√2 ≈ 1.5 = ".repeat(200), "2024-01-05".repeat(300), "mW/".repeat(1300),
        format!("5 \\text{{{}}}", "GW^9 ".repeat(700)),
    ];
    for text in &texts {
        grade(text, text, true);
        grade("5", text, false);
        explain("x", text);
        compare("5 \\text{ m}", text);
    }
}

/// Found by fuzzing.
#[test]
fn signs_in_sets_and_choices_do_not_expand_for_ever() {
    // `±` inside these was not replaced, and the comparison recursed without end.
    for text in ["[\\pm 1, 2)", "B. \\pm 2", "\\{\\pm 1\\} \\cup (2, 3)", "\\pm 1 : 2"] {
        assert_eq!(compare(text, &format!("{text} ")), Verdict::Right);
        assert_ne!(compare(text, "17"), Verdict::Right);
    }
    // Splitting letters once moved the parser back before its first token.
    assert_eq!(compare("yn0", "y*n*0"), Verdict::Right);
}

/// Assert that each gold accepts the answers of the first list and none of the second, stated in a box.
fn takes(table: &[(&str, &[&str], &[&str])]) {
    let verdict = |gold: &str, answer: &str| grade(gold, &format!("so $\\boxed{{{answer}}}$"), true).strict;
    for (gold, right, others) in table {
        right.iter().for_each(|it| assert_eq!(verdict(gold, it), Verdict::Right, "{gold} against {it}"));
        others.iter().for_each(|it| assert_ne!(verdict(gold, it), Verdict::Right, "{gold} against {it}"));
    }
}

#[test]
fn wrong_answers_are_not_taken_for_their_looks() {
    #[rustfmt::skip]
    takes(&[
        // Ratios with zeros.
        ("5:4", &["10:8", "5 : 4"], &["0:0", "0 : 0", "0:4", "5:0"]),
        ("4:0:6", &["2:0:3"], &["2:0:4", "0:0:0", "0:0:3"]),
        ("x:y=5:4", &["x:y=10:8"], &["0:0", "x:y=0:0"]),
        // Products whose letters could be a word.
        ("-cde", &["-c d e", "-ecd", "-dc \\cdot e"], &["cde", "cde!", "-cd", "c - de"]),
        ("ade", &["d \\cdot a \\cdot e", "\\frac{ade}{1}", "a d e"], &["ade!", "-ade", "ad - e", "a, d, e"]),
        ("bed - fa", &["-fa + bed", "bed - af"], &["bed fa", "bed, fa", "fa - bed", "bedfa"]),
        ("time", &["Time", "\\text{time}", "time."], &["item", "emit", "-time"]),
        ("\\text{No}", &["no", "No!", "NO."], &["on", "yes", "no or yes"]),
        // Periods and factorials.
        ("\\frac{5}{3}", &["1.(6)", "1.\\overline{6}", "1.\\bar6", "1.\\dot{6}"], &["1.(6)6", "1.6", "1.\\dot{5}"]),
        ("\\frac{3}{11}", &["0.(27)", "0.\\dot{2}\\dot{7}", "0.\\bar{27}"], &["0.2(7)", "0.\\dot{2}7"]),
        ("8", &["4!!", "(4)!!", "2!!\\cdot 4"], &["4!", "2.(4)", "8!!", "4!!!"]),
        ("k!!", &["k!!"], &["k!", "(k!)!", "(k+1)!!"]),
        // Inequalities that hold together or apart.
        ("[2,5)", &["x \\ge 2 \\text{ and } x < 5", "x<5, x \\ge 2", "2 \\le x \\land x < 5"],
            &["x \\ge 2 \\text{ or } x<5", "x>2, x<5"]),
        ("\\mathbb{R}", &["x \\ge 2 \\text{ or } x<5"], &["x \\ge 2 \\text{ and } x<5", "x>2 \\text{ or } x<2"]),
        ("(4,\\infty)", &["x > 1, x > 4", "x>4 \\text{ or } x>9"], &["x>4 \\text{ and } x>9",
            "x>1 \\text{ or } x > 4"]),
        ("\\mathbb{R}\\setminus\\{0,4\\}", &["x \\ne 0, x \\ne 4", "x \\ne 0, 4"], &["x \\ne 0",
            "x \\ne 0 \\text{ or } x \\ne 4"]),
        // Words after a number that change it.
        ("9", &["9 \\text{ cats and dogs}", "9 \\text{ inches squared}", "9 \\text{ more pens}"],
            &["9 \\text{ or fewer}"]),
        ("9", &["9"], &["9 \\text{ cubed}", "9 \\text{ and a quarter}", "9 \\text{ plus two}",
            "9 \\text{ unless } k = 3"]),
        ("9", &["9 \\text{ is the total}"], &["9 \\text{ is incorrect}", "9 \\text{ tens}", "9 \\text{ more than } 4"]),
        ("C", &["C"], &["\\text{(B) } C", "C \\text{ (or B)}"]),
    ]);
}

/// Regression: of several answers only the first was graded.
#[test]
fn a_second_answer_is_not_hidden_behind_the_first() {
    #[rustfmt::skip]
    takes(&[
        ("A", &["\\text{(A) } 7 \\text{ m}", "(A) both (B) and (C)", "A, not B", "A because the area doubles",
            "A: E. coli", "(A) (p + B)", "(A) P(B) + P(C)"],
            &["(A) or (B)", "(A) and (B)", "\\text{(A) or (B)}", "\\textbf{(A)}\\ 7 \\qquad \\textbf{(B)}\\ 9",
            "A: 7, B: 9", "A (the area) or B (the volume)", "A - the area, B - the volume", "A. 7 or B. 9",
            "A (also B)"]),
        ("7", &["(A) 7"], &["(A) 7 (B) 9", "(A) 7 or (B) 9"]),
        ("7", &["7 \\text{ of the pens}", "7 \\text{ (no units)}", "7 \\text{ out of doors}"],
            &["7 \\text{ (maybe 9)}", "7 \\text{ (alternatively, 9)}", "7 \\text{ (when } k = 3)", "7 \\text{ at most}",
            "7 \\text{ at least}", "7 \\text{ when k is even}", "7 \\text{ for odd k}", "7 \\text{ times } k",
            "7 \\text{ of } k", "7十"]),
        ("u = 7, v = 9", &["7, 9", "v = 9, u = 7", "7 \\text{ and } 9"], &["9, 7", "u = 9, v = 7"]),
        ("u_1 = 7, u_2 = 9", &["9, 7"], &["9, 9"]),
    ]);
    let graded = |text: &str| grade("7", text, true).strict;
    for text in ["Final answer: > 7", "答案：不是7", "\\boxed{7}\n\nAnswer: 9", "The answer is 7 or 9."] {
        assert_ne!(graded(text), Verdict::Right, "{text}");
    }
    for text in ["Answer:\n> 7", "【答案】7", "答え：7", "\\boxed{7}\n\nThe final answer should be 3 digits long."]
    {
        assert_eq!(graded(text), Verdict::Right, "{text}");
    }
}

#[test]
fn right_answers_are_taken_in_other_forms() {
    #[rustfmt::skip]
    takes(&[
        // An expression and its value.
        ("11", &["\\text{Perimeter} = 11", "u^2 - v = 11", "\\lim_{k \\to 3} a_k = 5 + 6 = 11"],
            &["\\text{Perimeter} = 10 + 2 = 11"]),
        ("11", &["\\text{Total: } 11", "\\text{So the sum is } 11"], &["\\text{not: } 11", "\\text{more than: } 11",
            "\\text{Total} \\ge 11"]),
        ("11", &["\\Pr(K < 4) = 11"], &["u^2 = 4 \\text{ or } v = 11", "\\text{Sum} = 4, \\text{Area} = 11",
            "u^2 = 11 v", "\\text{Sum} \\ne 11"]),
        ("u - v = 11", &["11 = u - v", "v = u - 11"], &["11", "\\text{Sum} = 11", "u^2 = 11"]),
        ("\\begin{pmatrix}1\\\\6\\end{pmatrix}", &["B^{-1} = \\begin{pmatrix}1\\\\[3pt]6\\end{pmatrix}"],
            &["\\begin{pmatrix}1\\\\[3pt]7\\end{pmatrix}"]),
        // Tokens.
        ("5", &["\\log_3 243", "\\log_2 32 = 5"], &["\\log_3 729", "\\log_{3}2 43"]),
        ("6-2i", &["6-2\\mathrm{i}", "6 - 2\\text{i}"], &["6+2\\mathrm{i}", "6-2\\mathrm{e}"]),
        ("\\pm 4, \\pm 6", &["-6,-4,4,6", "\\{\\pm 6, \\pm 4\\}"], &["-4,4,6", "4,6"]),
        ("\\frac{5}{8}", &["\\color{blue}{\\frac{5}{8}}", "5 \\over 8", "\\nicefrac58",
            "\\underline{\\frac58} \\tag{2}"], &["8 \\over 5", "\\tag{5} 8"]),
        ("29", &["\\therefore 29", "\\mathtt{29}", "29\\hspace{2mm}", "29\\\\"], &["\\phantom{2}9", "2\\hspace{9mm}"]),
        ("7:2", &["7 \\text{ to } 2", "7 \\text{ : } 2", "7{:}2"], &["2 \\text{ to } 7", "7 \\text{ to the } 2"]),
        ("45^\\circ", &["45^{\\text{o}}", "45 \\deg", "45^\\circ \\text{ (acute)}",
            "45^\\circ \\text{ or } \\frac{\\pi}{4}"], &["45^\\circ \\text{ or } 46^\\circ"]),
        // Choices.
        ("D", &["\\text{Option D}", "\\text{Answer: (D)}", "\\mathbf{(D)}\\ 12", "D)", "D \\text{ (12 pens)}",
            "\\text{D - 12 pens}"], &["\\text{Option C}", "\\mathbf{(C)}\\ D", "\\text{Answer: C or D}", "D - 12",
            "D (x + 12)"]),
        // Units and money.
        ("40", &["40\\$", "40€", "\\text{£}40", "\\$40/\\text{hour}", "40 \\Omega", "40\\frac{\\text{km}}{\\text{h}}"],
            &["40\\$3", "\\$4 0"]),
        ("3 \\text{ m/s}^2", &["3 \\text{ meters per second squared}", "300\\frac{\\text{cm}}{\\text{s}^2}"],
            &["3 \\text{ meters squared per second}", "3\\frac{\\text{m}}{\\text{s}}"]),
        ("8 \\text{ J/(kg K)}", &["8\\ \\mathrm{J/(kg\\cdot K)}", "8\\ \\mathrm{J\\,kg^{-1}K^{-1}}"],
            &["8\\ \\mathrm{J/kg\\cdot K}"]),
        ("6\\% \\text{ rise}", &["6\\%", "6\\% \\text{ rise}"], &["6\\% \\text{ fall}", "7\\%"]),
        ("30^\\circ\\text{C}", &["30\\text{°C}"], &["30\\text{°F}"]),
        ("201_3", &["(201)_3", "201_{\\text{three}}", "201 \\text{ (base 3)}", "19", "201", "n = 201"], &["(201)_4",
            "201_3 \\text{ (base 4)}", "210", "102"]),
        // Sets.
        ("(-\\infty,2)\\cup(6,\\infty)", &["\\{t \\mid t<2 \\text{ or } t>6\\}", "]-\\infty,2[ \\cup ]6,\\infty[",
            "(6,\\infty), (-\\infty,2)"], &["]-\\infty,2] \\cup [6,\\infty[", "(6,\\infty)",
            "\\{t : t<2 \\text{ or } t \\ge 6\\}"]),
        ("[1,8]", &["\\{t \\in \\mathbb{R} : 1 \\le t \\le 8\\}"], &["\\{t \\in \\mathbb{R} : 1 < t \\le 8\\}"]),
        ("\\mathbb{R}", &["\\text{the set of all real numbers}", "\\text{all reals}"], &["\\text{all integers}",
            "\\text{no real number}"]),
        ("\\emptyset", &["\\text{There are no solutions}", "\\text{the empty set}"], &["\\text{one solution}", "0"]),
        ("\\mathbb{R} \\setminus \\{3\\}", &["\\mathbb{R} - \\{3\\}"], &["\\mathbb{R} - \\{4\\}", "\\mathbb{R} - 3"]),
        ("(1,6),(6,1)", &["x=6, y=1 \\text{ or } x=1, y=6", "(x,y) \\in \\{(6,1),(1,6)\\}"], &["x=1, y=6",
            "x=6, y=1 \\text{ or } x=1, y=1"]),
        ("4, 9", &["t=4 \\text{ 或 } t=9", "4 \\text{ ou } 9", "4 \\& 9"], &["4 或 8"]),
        // Remarks.
        ("\\frac{1}{4}", &["\\frac14 \\text{ (or 0.25)}", "\\frac14, \\text{ i.e. } 25\\%"],
            &["\\frac14 \\text{ (or 0.2)}"]),
        ("5\\sqrt{2}", &["5\\sqrt2 \\ (\\approx 7.07)"], &["7.07", "5\\sqrt3 \\ (\\approx 7.07)"]),
        // Functions.
        ("\\gcd(k,m)", &["\\gcd(m,k)"], &["\\gcd(m,n)", "\\max(k,m)"]),
        ("\\min(k,m)", &["\\min\\{m,k\\}"], &["\\max\\{m,k\\}"]),
        ("\\binom{9}{4}", &["C(9,4)", "126"], &["C(4,9)", "C(9,3)"]),
    ]);
}
