//! HTML pages in a real browser: headless Debian chromium, in light and dark themes, at wide and narrow window sizes.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;
use serde_json::Value;

use crate::cli::succeed;
use crate::support::{Workshop, run_rl};

/// Window widths in pixels.
const WIDTHS: [u32; 2] = [1300, 420];

/// Rendered page.
#[derive(Debug, Deserialize)]
struct Shown {
    width: u32,
    /// Layout problems.
    problems: Vec<String>,
    text: String,
    /// Background colour.
    paper: String,
}

/// Render every page at every width; `None` without chromium.
fn shown(folder: &Path, pages: &[PathBuf], scheme: &str) -> Option<Vec<Shown>> {
    let html: Vec<String> = pages.iter().map(|page| std::fs::read_to_string(page).unwrap()).collect();
    // `</` could end the script element.
    let html = serde_json::to_string(&html).unwrap().replace("</", "<\\/");
    let script = include_str!("pages.js");
    let viewer = folder.join(format!("viewer-{scheme}.html"));
    let text = format!("<!doctype html><body><script>const PAGES = {html}, WIDTHS = {WIDTHS:?};\n{script}</script>");
    std::fs::write(&viewer, text).unwrap();
    let profile = folder.join(format!("profile-{scheme}"));
    let preferred = if scheme == "dark" { "0" } else { "1" };
    let output = Command::new("chromium")
        .args("--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync".split(' '))
        .args("--disable-background-networking --disable-component-update --enable-logging=stderr".split(' '))
        .args("--virtual-time-budget=60000 --dump-dom".split(' '))
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("--blink-settings=preferredColorScheme={preferred}"))
        .arg(format!("file://{}", viewer.display()))
        .output();
    let output = match output {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        output => output.unwrap(),
    };
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(!log.contains("CONSOLE"), "the browser complains: {log}");
    let dom = String::from_utf8(output.stdout).unwrap();
    let results = dom.rsplit_once("<pre id=\"results\">").and_then(|(_, rest)| rest.split_once("</pre>"));
    let (results, _) = results.unwrap_or_else(|| panic!("no results: {log}"));
    Some(serde_json::from_str(&results.replace("&nbsp;", " ")).unwrap())
}

/// Assert that the report of a run shows the figures of its `summary.json`.
fn assert_figures(text: &str, run: &Path) {
    let summary: Value = serde_json::from_slice(&std::fs::read(run.join("summary.json")).unwrap()).unwrap();
    for side in ["base", "final"] {
        let number = |name: &str| summary[side][name].as_f64().unwrap();
        let figures = [
            format!("{:.1}%", 100.0 * number("accuracy")),
            format!("{:.1}%", 100.0 * number("accuracy_lenient")),
            format!("{:.1}", number("mean_length")),
            format!("{:.3}", number("entropy")),
        ];
        for figure in figures {
            assert!(text.contains(&figure), "{side}: {figure} is not on the page: {text}");
        }
    }
}

#[test]
fn pages_fit_the_window_and_show_the_figures() {
    let workshop = Workshop::new();
    let mut config = workshop.rl("a run with a rather long name");
    config.stages.push(config.stages[0].clone());
    (config.stages[0].name, config.stages[1].name) = ("compress".to_string(), "enhance".to_string());
    config.stages[1].exit.max_steps = 1;
    run_rl(&config).unwrap();
    let mut runs = vec![workshop.run(&config.name)];
    // An existing run: the project's CI provides one of the quickstart.
    runs.extend(std::env::var_os("TEMPERING_TEST_RUN").map(PathBuf::from));
    let mut pages = Vec::new();
    for run in &runs {
        succeed(&[&"report", run]);
        pages.push(run.join("report.html"));
    }
    let (base, last) = ("completions/eval_base.jsonl", "completions/eval_final.jsonl");
    for (index, run) in runs.iter().enumerate() {
        let page = workshop.path(&format!("comparison{index}.html"));
        succeed(&[&"compare", &run.join(base), &run.join(last), &"--html", &page]);
        pages.push(page);
        let page = workshop.path(&format!("conflict{index}.html"));
        succeed(&[&"analyze", &run.join("final"), &"tasks", &"--num-problems", &"20", &"--html", &page]);
        pages.push(page);
    }

    let mut papers = Vec::new();
    for scheme in ["light", "dark"] {
        let Some(shown) = shown(&workshop.path(""), &pages, scheme) else {
            let missing = "SKIPPED: the pages were not looked at, there is no `chromium` (apt-get install chromium)";
            // The test runner captures `eprintln!`, but not this.
            writeln!(std::io::stderr(), "{missing}").unwrap();
            return;
        };
        assert_eq!(shown.len(), WIDTHS.len() * pages.len());
        for (index, Shown { width, problems, .. }) in shown.iter().enumerate() {
            let page = pages[index / WIDTHS.len()].display();
            assert!(problems.is_empty(), "{page}, {scheme}, {width} px: {problems:#?}");
        }
        for (run, shown) in runs.iter().zip(shown.chunks(WIDTHS.len())) {
            assert_figures(&shown[0].text, run);
        }
        papers.push(shown[0].paper.clone());
    }
    assert_ne!(papers[0], papers[1], "light and dark are one");
}
