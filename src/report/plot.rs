//! Line plots as SVG whose colours are CSS variables, so that they follow the page's theme.

use plotters::coord::types::RangedCoordf64;
use plotters::drawing::DrawingAreaErrorKind;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::numbers::fixed;
use crate::error::{Error, Result};

/// Whether the SVG could be written.
type Drawn = std::result::Result<(), DrawingAreaErrorKind<std::io::Error>>;

/// A colour by its role; the page gives it a value for light and for dark.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ink {
    Text,
    Grid,
    Blue,
    Orange,
    Green,
    Purple,
}

impl Ink {
    const ALL: [Self; 6] = [Self::Text, Self::Grid, Self::Blue, Self::Orange, Self::Green, Self::Purple];

    /// The CSS variable.
    pub(super) fn variable(self) -> &'static str {
        match self {
            Self::Text => "--plot-text",
            Self::Grid => "--plot-grid",
            Self::Blue => "--blue",
            Self::Orange => "--orange",
            Self::Green => "--green",
            Self::Purple => "--purple",
        }
    }

    /// The stand-in colour that plotters writes and [`themed`] replaces.
    fn stand_in(self) -> RGBColor {
        RGBColor(0xFE, 0xDC, self as u8)
    }

    /// The colour of the `index`-th stage.
    pub(super) fn of_stage(index: usize) -> Self {
        [Self::Blue, Self::Orange, Self::Green, Self::Purple][index % 4]
    }
}

/// How a series is drawn.
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

/// Points of one kind.
pub(super) struct Series {
    pub(super) label: String,
    pub(super) ink: Ink,
    pub(super) mark: Mark,
    pub(super) points: Vec<(f64, f64)>,
}

/// One plot.
pub(super) struct Plot {
    pub(super) title: String,
    pub(super) note: String,
    pub(super) x_label: &'static str,
    pub(super) y_label: &'static str,
    /// The y axis starts at zero.
    pub(super) from_zero: bool,
    pub(super) small: bool,
    pub(super) series: Vec<Series>,
    /// The first step of each stage and its name; a vertical line where a stage follows another.
    pub(super) stages: Vec<(f64, String)>,
}

/// Everything is drawn at twice its size: plotters rounds coordinates to whole units.
const SCALE: u32 = 2;
const FONT_SIZE: u32 = 13;
/// Width of a plot and its right margin, before scaling.
const WIDTH: u32 = 480;
const RIGHT: u32 = 14;
const LEFT: u32 = 4;

/// Width of a text in the plot's font, before scaling: an estimate on the safe side.
fn text_width(text: &str) -> u32 {
    (text.chars().count() as u32 * FONT_SIZE * 6).div_ceil(10)
}

impl Plot {
    /// The SVG, or nothing if there is no point to draw.
    pub(super) fn svg(&self) -> Result<Option<String>> {
        let points = || self.series.iter().flat_map(|s| s.points.iter().copied());
        let (Some(xs), Some(ys)) = (extent(points().map(|p| p.0)), extent(points().map(|p| p.1))) else {
            return Ok(None);
        };
        let by_step = self.x_label == "step";
        // Beside the first and last step there is room for a dot.
        let room = 0.02 * (xs.1 - xs.0).max(1.0);
        let xs = if by_step { xs.0 - room..xs.1.max(xs.0 + 1.0) + room } else { padded(xs, false) };
        let ys = padded(ys, self.from_zero);
        let mut svg = String::new();
        self.draw(&mut svg, xs, ys, by_step).map_err(|e| Error::Invalid(format!("plot {:?}: {e}", self.title)))?;
        Ok(Some(themed(&svg, &self.title)))
    }

    fn draw(&self, svg: &mut String, xs: std::ops::Range<f64>, ys: std::ops::Range<f64>, by_step: bool) -> Drawn {
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
            .x_desc(x_axis.title(self.x_label))
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
            // Right-aligned at the edge where there is no room to the right of the line.
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
    fn draw<'t>(&self, chart: &mut Chart, text: &dyn Fn(HPos, VPos) -> TextStyle<'t>) -> Drawn {
        let ink = self.ink.stand_in();
        let points = self.points.iter().copied();
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
                    // The label goes to the side with more room.
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

/// Where the names of stages stand above the plot, `width` units wide: at the line that begins the stage, or at the right
/// edge. A name that would cover the one before is left out.
fn stage_labels<'a>(
    stages: &'a [(f64, String)],
    xs: &std::ops::Range<f64>,
    width: u32,
) -> impl Iterator<Item = (f64, &'a str)> {
    let (xs, width, mut free) = (xs.clone(), f64::from(width), 0.0);
    stages.iter().filter_map(move |(step, name)| {
        let x = step.clamp(xs.start, xs.end);
        let at = (x - xs.start) / (xs.end - xs.start) * width;
        let long = f64::from(text_width(name)) + 8.0;
        let (from, x) = if at + long <= width { (at, x) } else { (width - long, xs.end) };
        if from < free {
            return None;
        }
        free = from + long;
        Some((x, name.as_str()))
    })
}

/// How the numbers of an axis are written.
struct Axis {
    /// Numbers are written as multiples of this power of ten.
    power: i32,
    places: usize,
}

impl Axis {
    /// Small numbers are written as multiples of a power of ten, which the title of the axis names.
    fn of(range: &std::ops::Range<f64>) -> Self {
        let largest = range.start.abs().max(range.end.abs());
        let power = if largest > 0.0 && largest < 1e-2 { largest.log10().floor() as i32 } else { 0 };
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

/// Smallest and largest value.
fn extent(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.filter(|v| v.is_finite()).fold(None, |acc, v| match acc {
        None => Some((v, v)),
        Some((low, high)) => Some((f64::min(low, v), f64::max(high, v))),
    })
}

/// A little room around the data, so that no point sits on the frame.
fn padded((low, high): (f64, f64), from_zero: bool) -> std::ops::Range<f64> {
    let low = if from_zero { low.min(0.0) } else { low };
    let room = if high > low { 0.06 * (high - low) } else { 0.1 * high.abs().max(0.01) };
    // Quantities that are never negative get no negative axis.
    let bottom = if low >= 0.0 { (low - room).max(0.0) } else { low - room };
    (if from_zero && low == 0.0 { 0.0 } else { bottom })..high + room
}

/// Decimal places that tell the axis labels apart.
fn places(range: &std::ops::Range<f64>) -> usize {
    // About five labels; the result is small and not negative, so the cast is exact.
    (-((range.end - range.start) / 5.0).log10().floor()).clamp(0.0, 6.0) as usize
}

/// Replaces plotters' colours by CSS variables and its fixed size by a label for screen readers.
fn themed(svg: &str, title: &str) -> String {
    // Line breaks inside a text element would shift it by a space.
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
        for y in [0.0, 1.0, -3.0, 1e9] {
            assert!(plot(vec![(0.0, y)]).svg().unwrap().is_some());
        }
    }

    /// Once the name was cut to "er" at the edge.
    #[test]
    fn a_stage_at_the_right_edge_is_named_in_full() {
        let stages = [(1.0, "compress".to_string()), (99.0, "enhance".to_string()), (99.5, "later".to_string())];
        let placed: Vec<_> = stage_labels(&stages, &(0.0..100.0), 400).collect();
        assert_eq!(placed, [(1.0, "compress"), (100.0, "enhance")]);
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
