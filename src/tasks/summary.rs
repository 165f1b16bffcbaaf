//! Summary of the tasks, as a table.

use super::{Generator, Manner, Split, TaskFamily};

/// Return a table with a row per family, computed over `tasks` problems: mean floor, mean trace length over the
/// mixture of manners, their ratio, and mean length and reference accuracy per manner. `tokens` counts a completion's
/// tokens without the end-of-turn token.
pub fn summary(generator: &Generator, tasks: u64, tokens: impl Fn(&str) -> usize) -> String {
    let mut text = format!("{:<11}{:>6}{:>7}{:>7}", "family", "floor", "trace", "ratio");
    Manner::ALL.iter().for_each(|manner| text += &format!("{:>15}", manner.name()));
    let mut rows = vec![[[0.0f64; 3]; 7]; TaskFamily::ALL.len() + 1];
    let mut mixed = Vec::new();
    for index in 0..tasks {
        let task = generator.task(Split::Train, index);
        let mut random = generator.stream("trace", Split::Train, index);
        let drawn = task.family.draw_manner(&mut random);
        let mut expected = 0.0;
        for (column, manner) in Manner::ALL.into_iter().enumerate() {
            let trace = task.trace(manner, true, &mut random);
            let length = tokens(&trace.text) + 1;
            expected += task.family.weight(manner) * length as f64;
            if manner == drawn {
                mixed.push(length);
            }
            for row in [task.family as usize, TaskFamily::ALL.len()] {
                rows[row][column][0] += length as f64;
                rows[row][column][1] += f64::from(u8::from(trace.correct));
                rows[row][column][2] += 1.0;
            }
        }
        for row in [task.family as usize, TaskFamily::ALL.len()] {
            rows[row][6][0] += (tokens(&task.floor_text()) + 1) as f64;
            rows[row][6][1] += expected;
            rows[row][6][2] += 1.0;
        }
    }
    let names = TaskFamily::ALL.iter().map(|family| family.name()).chain(["all"]);
    for (name, row) in names.zip(&rows).filter(|(_, row)| row[6][2] > 0.0) {
        let mean = |column: usize, what: usize| row[column][what] / row[column][2];
        let trace = mean(6, 1);
        text += &format!("\n{name:<11}{:>6.1}{trace:>7.1}{:>7.2}", mean(6, 0), trace / mean(6, 0));
        for column in 0..6 {
            text += &format!("{:>8.1} {:>5.1}%", mean(column, 0), 100.0 * mean(column, 1));
        }
    }
    mixed.sort_unstable();
    let at = |share: f64| mixed.get((share * mixed.len() as f64) as usize).copied().unwrap_or(0);
    text + &format!("\nlengths: median {}, 99.5 % below {}, longest {}", at(0.5), at(0.995), mixed.last().unwrap_or(&0))
}
