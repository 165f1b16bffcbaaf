//! SVG plots whose colours are CSS variables, so that they follow the page's light or dark theme.

use plotters::coord::types::RangedCoordf64;
use plotters::drawing::DrawingAreaErrorKind;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::numbers::fixed;
use crate::error::{Error, Result};

/// Result of drawing.
type DrawResult = std::result::Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// Colour of a plot element. The page defines its value for the light and the dark theme.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ink {
    Text,
    Grid,
    Faint,
    Blue,
    Orange,
    Green,
    Purple,
}

impl Ink {
    const ALL: [Self; 7] = [Self::Text, Self::Grid, Self::Faint, Self::Blue, Self::Orange, Self::Green, Self::Purple];

    /// Return the name of the CSS variable.
    pub(super) fn variable(self) -> &'static str {
        match self {
            Self::Text => "--plot-text",
            Self::Grid => "--plot-grid",
            Self::Faint => "--plot-faint",
            Self::Blue => "--blue",
            Self::Orange => "--orange",
            Self::Green => "--green",
            Self::Purple => "--purple",
        }
    }

    /// Return the placeholder colour that plotters writes and [`themed`] replaces.
    fn stand_in(self) -> RGBColor {
        RGBColor(0xFE, 0xDC, self as u8)
    }

    /// Return the colour of stage `index`.
    pub(super) fn of_stage(index: usize) -> Self {
        [Self::Blue, Self::Orange, Self::Green, Self::Purple][index % 4]
    }
}

/// Drawing style of a series.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Mark {
    Line,
    ThinLine,
    Dots,
    FaintDots,
    /// A hollow circle with the series' label beside it.
    Start,
    /// A filled circle with the series' label beside it.
    End,
}

/// Points with one label, colour and drawing style.
pub(super) struct Series {
    pub(super) label: String,
    pub(super) ink: Ink,
    pub(super) mark: Mark,
    pub(super) points: Vec<(f64, f64)>,
}

/// Description of a plot.
pub(super) struct Plot {
    pub(super) title: String,
    pub(super) note: String,
    pub(super) x_label: &'static str,
    pub(super) y_label: &'static str,
    /// Whether the y axis starts at zero.
    pub(super) from_zero: bool,
    pub(super) small: bool,
    pub(super) series: Vec<Series>,
    /// First step and name of each stage. Every stage but the first begins at a vertical line.
    pub(super) stages: Vec<(f64, String)>,
}

/// Scale of the drawing. plotters rounds coordinates to whole units, so plots are drawn at twice their size.
const SCALE: u32 = 2;
const FONT_SIZE: u32 = 13;
/// Width of a plot and its margins, before scaling.
const WIDTH: u32 = 480;
const RIGHT: u32 = 14;
const LEFT: u32 = 4;
/// Least margin of a range as a share of its numbers. In a narrower one, numbers at a distance of a tick are equal.
const ROUNDING: f64 = 1e-6;

/// Return whether a point is drawn: both coordinates are finite, and so far from the limit of f64 that their range is
/// finite, too.
fn is_drawn(point: &(f64, f64)) -> bool {
    point.0.abs() < 1e300 && point.1.abs() < 1e300
}

/// Return an upper estimate of the width of a text in the plot's font, before scaling.
fn text_width(text: &str) -> u32 {
    (text.chars().count() as u32 * FONT_SIZE * 6).div_ceil(10)
}

impl Plot {
    /// Return the SVG, or `None` if there are no points.
    pub(super) fn svg(&self) -> Result<Option<String>> {
        let points = || self.series.iter().flat_map(|s| s.points.iter().copied().filter(is_drawn));
        let (Some(xs), Some(ys)) = (extent(points().map(|p| p.0)), extent(points().map(|p| p.1))) else {
            return Ok(None);
        };
        let by_step = self.x_label == "step";
        // Leave space for a dot beside the first and the last step.
        let room = (0.02 * (xs.1 - xs.0).max(1.0)).max(ROUNDING * xs.1.abs());
        let xs = if by_step { xs.0 - room..xs.1.max(xs.0 + 1.0) + room } else { padded(xs, false) };
        let ys = padded(ys, self.from_zero);
        let mut svg = String::new();
        self.draw(&mut svg, xs, ys, by_step).map_err(|e| Error::Invalid(format!("plot {:?}: {e}", self.title)))?;
        Ok(Some(themed(&svg, &self.title)))
    }

    fn draw(&self, svg: &mut String, xs: std::ops::Range<f64>, ys: std::ops::Range<f64>, by_step: bool) -> DrawResult {
        let (top, height) = (ys.end, if self.small { 200 } else { 280 });
        let (x_axis, y_axis) = (Axis::of(&xs), Axis::of(&ys));
        let tick_width = [ys.start, ys.end].map(|y| text_width(&y_axis.label(y))).into_iter().max().unwrap_or(0);
        let y_area = (tick_width + 30).max(58);
        let root = SVGBackend::with_string(svg, (WIDTH * SCALE, height * SCALE)).into_drawing_area();
        // plotters divides font sizes by 1.24 when it writes SVG.
        let font = ("sans-serif", 1.24 * f64::from(FONT_SIZE * SCALE)).into_font().color(&Ink::Text.stand_in());
        let text = |h, v| font.pos(Pos::new(h, v));
        let axis = Ink::Text.stand_in().mix(0.6).stroke_width(SCALE);
        let mut chart = ChartBuilder::on(&root)
            .margin_top(if self.stages.is_empty() { 10 } else { 22 } * SCALE)
            .margin_right(RIGHT * SCALE)
            .margin_left(LEFT * SCALE)
            .x_label_area_size(42 * SCALE)
            .y_label_area_size(y_area * SCALE)
            .build_cartesian_2d(xs.clone(), ys)?;
        chart
            .configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(Ink::Grid.stand_in().stroke_width(SCALE))
            .axis_style(axis)
            .x_desc(if by_step { self.x_label.to_string() } else { x_axis.title(self.x_label) })
            .y_desc(y_axis.title(self.y_label))
            .x_labels(6)
            .y_labels(if self.small { 4 } else { 6 })
            .x_label_formatter(&|x| match by_step {
                true if x.fract().abs() > 1e-6 => String::new(),
                true => format!("{x:.0}"),
                false => x_axis.label(*x),
            })
            .y_label_formatter(&|y| y_axis.label(*y))
            .label_style(font.clone())
            .axis_desc_style(font.clone())
            .draw()?;
        for (step, _) in self.stages.iter().skip(1) {
            let x = step.clamp(xs.start, xs.end);
            chart.draw_series([PathElement::new(vec![(x, top), (x, chart.y_range().start)], axis)])?;
        }
        let width = WIDTH - LEFT - RIGHT - y_area;
        for (x, name) in stage_labels(&self.stages, &xs, width) {
            // Right-aligned at the edge if there is no space to the right of the line.
            let right = x == xs.end;
            let (side, dx) = if right { (HPos::Right, 0) } else { (HPos::Left, 2 * SCALE as i32) };
            let label = Text::new(name.to_string(), (dx, -3 * SCALE as i32), text(side, VPos::Bottom));
            chart.draw_series([EmptyElement::at((x, top)) + label])?;
        }
        for series in &self.series {
            series.draw(&mut chart, &text)?;
        }
        root.present()
    }
}

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

impl Series {
    fn draw<'t>(&self, chart: &mut Chart, text: &dyn Fn(HPos, VPos) -> TextStyle<'t>) -> DrawResult {
        let ink = self.ink.stand_in();
        let points = self.points.iter().copied().filter(is_drawn);
        let radius = 3 * SCALE;
        match self.mark {
            Mark::Line | Mark::ThinLine => {
                let width = if self.mark == Mark::Line { 2 } else { 1 } * SCALE;
                chart.draw_series(LineSeries::new(points, ink.stroke_width(width)))?;
            }
            Mark::Dots => {
                chart.draw_series(points.map(|p| Circle::new(p, radius + 1, ink.filled())))?;
            }
            Mark::FaintDots => {
                chart.draw_series(points.map(|p| Circle::new(p, SCALE, ink.mix(0.35).filled())))?;
            }
            Mark::Start | Mark::End => {
                let filled = self.mark == Mark::End;
                let shape = ShapeStyle { color: ink.to_rgba(), filled, stroke_width: 2 * SCALE };
                let std::ops::Range { start, end } = chart.x_range();
                for (x, y) in points {
                    // Put the label on the side with more space.
                    let right = x < (start + end) / 2.0;
                    let dx = if right { 9 } else { -9 } * SCALE as i32;
                    let style = text(if right { HPos::Left } else { HPos::Right }, VPos::Center);
                    chart.draw_series([EmptyElement::at((x, y))
                        + Circle::new((0, 0), radius + 2, shape)
                        + Text::new(self.label.clone(), (dx, 0), style)])?;
                }
            }
        }
        Ok(())
    }
}

/// Return x position and text of the stage labels above a plot of `width` units: at the line of the stage if they end
/// before the next line. The last one may lie left of its line, at the right edge. Others are omitted, so that no line
/// is under the name of another stage.
fn stage_labels<'a>(
    stages: &'a [(f64, String)],
    xs: &std::ops::Range<f64>,
    width: u32,
) -> impl Iterator<Item = (f64, &'a str)> {
    let (start, end, width, mut free) = (xs.start, xs.end, f64::from(width), 0.0);
    let at = move |x: f64| (x - start) / (end - start) * width;
    stages.iter().enumerate().filter_map(move |(index, (step, name))| {
        let x = step.clamp(start, end);
        let long = f64::from(text_width(name)) + 8.0;
        match stages.get(index + 1) {
            next if at(x) + long <= next.map_or(width, |(next, _)| at(*next)) => {
                free = at(x) + long;
                Some((x, name.as_str()))
            }
            None if width - long >= free => Some((end, name.as_str())),
            _ => {
                // The line itself must not be under the last name.
                free = at(x);
                None
            }
        }
    })
}

/// Number format of an axis.
struct Axis {
    /// Exponent of the power of ten that labels are multiples of.
    power: i32,
    places: usize,
}

impl Axis {
    /// Choose the format of a range. Small and large numbers become multiples of a power of ten, which the axis title
    /// states.
    fn of(range: &std::ops::Range<f64>) -> Self {
        let largest = range.start.abs().max(range.end.abs());
        let plain = largest == 0.0 || (1e-2..1e6).contains(&largest);
        let power = if plain { 0 } else { largest.log10().floor() as i32 };
        let scale = 10f64.powi(-power);
        Self { power, places: places(&(scale * range.start..scale * range.end)) }
    }

    fn label(&self, value: f64) -> String {
        fixed(value * 10f64.powi(-self.power), self.places)
    }

    fn title(&self, unit: &str) -> String {
        if self.power == 0 {
            return unit.to_string();
        }
        let raised = |c: char| match c {
            '-' => '\u{207b}',
            '1' => '\u{b9}',
            '2' => '\u{b2}',
            '3' => '\u{b3}',
            digit => char::from_u32(0x2070 + digit as u32 - '0' as u32).unwrap_or(digit),
        };
        let power: String = self.power.to_string().chars().map(raised).collect();
        format!("10{power} {unit}")
    }
}

/// Return the smallest and the largest finite value.
fn extent(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.filter(|v| v.is_finite()).fold(None, |acc, v| match acc {
        None => Some((v, v)),
        Some((low, high)) => Some((f64::min(low, v), f64::max(high, v))),
    })
}

/// Extend a range so that no point lies on the frame of the plot.
fn padded((low, high): (f64, f64), from_zero: bool) -> std::ops::Range<f64> {
    let low = if from_zero { low.min(0.0) } else { low };
    let largest = low.abs().max(high.abs());
    let room = if high > low { (0.06 * (high - low)).max(ROUNDING * largest) } else { 0.1 * largest.max(0.01) };
    // Do not extend non-negative data below zero.
    let bottom = if low >= 0.0 { (low - room).max(0.0) } else { low - room };
    (if from_zero && low == 0.0 { 0.0 } else { bottom })..high + room
}

/// Return the number of decimals that makes the axis labels distinct.
fn places(range: &std::ops::Range<f64>) -> usize {
    // About five labels; the result is small and not negative, so the cast is exact.
    (-((range.end - range.start) / 5.0).log10().floor()).clamp(0.0, 6.0) as usize
}

/// Replace the placeholder colours by CSS variables, and the fixed size by a label for screen readers.
fn themed(svg: &str, title: &str) -> String {
    // A line break inside a text element would be rendered as a space.
    let svg = svg.replace("\n</text>", "</text>");
    let mut svg = Ink::ALL.iter().fold(svg, |svg, ink| {
        let RGBColor(r, g, b) = ink.stand_in();
        svg.replace(&format!("\"#{r:02X}{g:02X}{b:02X}\""), &format!("\"var({})\"", ink.variable()))
    });
    let title = title.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;");
    if let (Some(from), Some(to)) = (svg.find(" width="), svg.find(" viewBox=")) {
        svg.replace_range(from..to, &format!(" role=\"img\" aria-label=\"{title}\""));
    }
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(points: Vec<(f64, f64)>) -> Plot {
        let series = [Mark::Line, Mark::ThinLine, Mark::Dots, Mark::FaintDots, Mark::Start, Mark::End]
            .map(|mark| Series { label: "a<b".into(), ink: Ink::Blue, mark, points: points.clone() });
        Plot {
            title: "Entropy in \"a<b\"".into(),
            note: String::new(),
            x_label: "step",
            y_label: "nats",
            from_zero: true,
            small: false,
            series: series.into(),
            stages: vec![(1.0, "compress".into()), (2.0, "enhance".into())],
        }
    }

    #[test]
    fn every_colour_is_a_variable() {
        let svg = plot(vec![(1.0, 0.3), (2.0, 0.1), (3.0, 0.2)]).svg().unwrap().unwrap();
        assert!(!svg.contains("\"#"), "{svg}");
        assert!(!svg.contains("black") && svg.contains("var(--blue)") && svg.contains("var(--plot-text)"));
        assert!(svg.contains("compress") && svg.contains("enhance") && svg.contains("a&lt;b"));
        assert!(svg.contains("aria-label=\"Entropy in &quot;a&lt;b&quot;\""), "{svg}");
    }

    #[test]
    fn degenerate_data_still_draws() {
        assert!(plot(vec![]).svg().unwrap().is_none());
        for y in [0.0, 1.0, -3.0, 1e9, 1e299] {
            assert!(plot(vec![(0.0, y)]).svg().unwrap().is_some());
        }
    }

    /// Regression: the range of such numbers is infinite or empty, and the search for ticks did not end.
    #[test]
    fn numbers_at_the_limit_of_f64_are_left_out_and_huge_ones_drawn() {
        assert!(plot(vec![(1.0, 1.75e308), (2.0, -1.75e308)]).svg().unwrap().is_none());
        let svg = plot(vec![(1.0, 1.75e308), (2.0, 1e7), (3.0, 2e7)]).svg().unwrap().unwrap();
        assert!(svg.contains("10\u{2077} nats"), "{svg}");
        assert!(plot(vec![(1e18, 1e17), (1e18, 1e17 + 16.0)]).svg().unwrap().is_some());
    }

    /// Regression: the name was cut off to "er" at the edge.
    #[test]
    fn a_stage_at_the_right_edge_is_named_in_full() {
        let stages = [(1.0, "compress".to_string()), (99.0, "enhance".to_string())];
        let placed: Vec<_> = stage_labels(&stages, &(0.0..100.0), 400).collect();
        assert_eq!(placed, [(1.0, "compress"), (100.0, "enhance")]);
    }

    /// Regression: the line of a stage was under the name of the one before, whose name was wider than its steps.
    #[test]
    fn no_line_is_under_the_name_of_another_stage() {
        let stages = [1.0, 5.0, 50.0, 98.0, 99.0].map(|step| (step, "compress".to_string()));
        let placed: Vec<_> = stage_labels(&stages, &(0.0..100.0), 400).map(|(x, _)| x).collect();
        // 98 is too close to 99, and the name of 99 would cover the line of 98.
        assert_eq!(placed, [5.0, 50.0]);
    }

    #[test]
    fn small_numbers_are_multiples_of_a_power_of_ten() {
        let axis = Axis::of(&(-2e-5..4e-5));
        assert_eq!(
            (axis.label(-0.2e-7), axis.label(3e-5), axis.title("nats")),
            ("0".into(), "3".into(), "10\u{207b}\u{2075} nats".into())
        );
        assert_eq!(Axis::of(&(0.0..1.0)).title("nats"), "nats");
    }

    #[test]
    fn axis_labels_differ() {
        assert_eq!([0.0..0.05, 0.0..1.0, 0.0..9.0, 0.0..300.0].map(|r| places(&r)), [2, 1, 0, 0]);
    }
}
