//! Formatting of numbers. An unknown number is a dash.

pub(super) const NONE: &str = "\u{2013}";

/// Format a number with `places` decimals. A number that rounds to zero has no sign.
pub(super) fn fixed(value: f64, places: usize) -> String {
    let text = format!("{value:.places$}");
    let zero = text.chars().all(|c| matches!(c, '-' | '0' | '.'));
    if zero {
        text.trim_start_matches('-').to_string()
    } else {
        text.replace('-', "\u{2212}").replace("inf", "\u{221e}")
    }
}

pub(super) fn number(value: Option<f64>, places: usize) -> String {
    value.map_or(NONE.into(), |v| fixed(v, places))
}

pub(super) fn percent(value: Option<f64>) -> String {
    value.map_or(NONE.into(), |v| format!("{:.1}%", 100.0 * v))
}

pub(super) fn signed(value: Option<f64>, places: usize) -> String {
    let sign = |text: String| if text.starts_with('\u{2212}') { text } else { format!("+{text}") };
    value.map_or(NONE.into(), |v| sign(fixed(v, places)))
}

pub(super) fn times(value: Option<f64>) -> String {
    value.map_or(NONE.into(), |v| format!("{v:.2}\u{d7}"))
}

pub(super) fn arrow(before: String, after: String) -> String {
    format!("{before} \u{2192} {after}")
}

pub(super) fn difference(before: Option<f64>, after: Option<f64>) -> Option<f64> {
    Some(after? - before?)
}

pub(super) fn ratio(part: Option<f64>, whole: Option<f64>) -> Option<f64> {
    Some(part? / whole.filter(|w| *w > 0.0)?)
}

/// Format a p-value.
pub(super) fn p_value(p: f64) -> String {
    if p < 0.001 { "p < 0.001".into() } else { format!("p = {p:.3}") }
}

/// Format a duration in seconds as seconds, minutes or hours.
pub(crate) fn duration(seconds: f64) -> String {
    let minutes = (seconds / 60.0).floor();
    match seconds {
        s if s < 60.0 => format!("{s:.0} s"),
        s if s < 3600.0 => format!("{minutes} min {:.0} s", (s % 60.0).floor()),
        _ => format!("{} h {} min", (minutes / 60.0).floor(), minutes % 60.0),
    }
}
