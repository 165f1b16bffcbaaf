//! The command `study`.

use std::path::{Path, PathBuf};

use clap::Args;

use super::progress::say;
use super::{print, stop_on_signal};
use crate::config;
use crate::error::Error;
use crate::files;
use crate::report;
use crate::stop::Stop;
use crate::study::{Findings, Plan, Planned, ProcessEnd, Store, StudyConfig, work};

/// Compare methods: arms, settings and seeds at an equal budget of sampled tokens. An interrupted study is continued.
#[derive(Debug, Args)]
pub(super) struct StudyArgs {
    /// Study file (TOML).
    file: PathBuf,
    /// Change a setting of the study: key=value; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Do not train: write the page from the finished runs.
    #[arg(long)]
    report: bool,
    /// Print the runs that would be done, and exit.
    #[arg(long, conflicts_with = "report")]
    dry_run: bool,
}

pub(super) fn study(args: &StudyArgs) -> anyhow::Result<()> {
    let study: StudyConfig = config::load(Some(&args.file), &args.sets)?;
    let folder = args.file.parent().unwrap_or(Path::new(""));
    let results = match &study.results {
        path if path.as_os_str().is_empty() => study.output_dir.join(&study.name).join("results.jsonl"),
        path => folder.join(path),
    };
    let plan = Plan::new(study, folder)?;
    let mut store = Store::open(&results, &plan)?;
    let choosing = plan.choosing();
    let reported = plan.config.arms.len() * plan.config.report_seeds.len();
    say(format_args!(
        "{} runs to select settings, {} of them finished; then up to {reported} runs to report; {} sampled tokens \
         each; results in {}",
        choosing.len(),
        choosing.iter().filter(|planned| store.get(planned).is_some()).count(),
        plan.config.sampled_tokens,
        results.display()
    ));
    if args.dry_run {
        choosing.iter().try_for_each(|planned| print(format!("{} {}", planned.key, planned.config.name)))?;
        return Ok(());
    }
    if args.report && choosing.iter().all(|planned| store.get(planned).is_none()) {
        let message = format!(
            "has no result of this study (and {} with other settings, data or models), so its page is not changed: \
             undo a change of the settings, or run the study without --report",
            store.len()
        );
        return Err(Error::file(&results, message).into());
    }
    let mut missing = Vec::new();
    if !args.report {
        let stop = stop_on_signal()?;
        let program = std::env::current_exe().map_err(Error::io(Path::new("the program itself")))?;
        let phase = |runs: Vec<Planned>, store: &mut Store| -> crate::error::Result<Vec<String>> {
            let (mut done, total) = (0, runs.iter().filter(|planned| store.get(planned).is_none()).count());
            work(&plan, runs, store, &program, Stop::new(&stop), &mut |event| tell(event, &mut done, total))
        };
        missing.extend(phase(choosing, &mut store)?);
        let chosen = Findings::new(&plan, &store).chosen();
        missing.extend(phase(plan.reporting(&chosen), &mut store)?);
    }
    let findings = Findings::new(&plan, &store);
    files::create_dir(&plan.folder())?;
    let written = report::study(&findings, &plan.folder())?;
    print(report::study_text(&findings))?;
    print(format!("page: {}", written.display()))?;
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "{} runs failed twice and are missing: {}; see their logs in {}",
        missing.len(),
        missing.join(", "),
        plan.folder().display()
    ))
    .into())
}

fn tell(event: ProcessEnd<'_>, done: &mut usize, total: usize) {
    match event {
        ProcessEnd::Run(outcome) => {
            *done += 1;
            let (right, count, tokens) = outcome.last.values().fold((0, 0, 0), |(right, count, tokens), source| {
                let ones = source.correct.bytes().filter(|bit| *bit == b'1').count();
                (right + ones, count + source.correct.len(), tokens + source.lengths.iter().sum::<usize>())
            });
            say(format_args!(
                "{done} of {total}: {}  accuracy {:.1}%  {:.1} tokens  {} steps  {:.0} s",
                outcome.run,
                100.0 * right as f64 / count as f64,
                tokens as f64 / count as f64,
                outcome.steps,
                outcome.seconds
            ));
        }
        ProcessEnd::Again(name, error) => say(format_args!("{name} failed and is started again: {error}")),
        ProcessEnd::Missing(name, error) => say(format_args!("{name} failed twice and is missing: {error}")),
    }
}
