//! A status as lines of text. What may grow too long for the terminal stands last in its line.

use std::fmt;
use std::time::Duration;

use ratatui::style::{Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use switchyard_coordinator::http::admin::{FaultStatus, ModelStatus, RankStatus, StatusObject};

use crate::table::{Align, NONE, Table};

/// Cells of the bar that shows how full the KV cache is.
const BAR_CELLS: usize = 20;
/// What is told of a rank; the last ones only where there is room.
const COLUMNS: [(&str, Align); 9] = [
    ("RANK", Align::Right),
    ("STATE", Align::Left),
    ("SEQS", Align::Right),
    ("KV BLOCKS", Align::Right),
    ("TOK/S", Align::Right),
    ("STEP", Align::Right),
    ("WORKER", Align::Left),
    ("DEVICE", Align::Left),
    ("PID", Align::Left),
];
/// Columns that are always shown.
const COLUMNS_MIN: usize = 7;
/// Faults shown of each model, the latest first.
const FAULTS_SHOWN: usize = 4;
/// Before everything that belongs to a model.
const INDENT: &str = "  ";

/// Whether colours are used. What a colour says, a word says too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Palette {
    Colored,
    Plain,
}

/// What a piece of text is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tone {
    Good,
    Changing,
    Bad,
    Quiet,
}

/// A status, ready to be shown.
#[derive(Debug)]
pub(super) struct View {
    lines: Vec<Line<'static>>,
}

// === impl Palette ===

impl Palette {
    /// Colours, unless the user has said that there must be none, by `NO_COLOR`.
    pub(super) fn of_environment() -> Self {
        match std::env::var_os("NO_COLOR") {
            Some(value) if !value.is_empty() => Self::Plain,
            Some(_) | None => Self::Colored,
        }
    }

    fn style(self, tone: Tone) -> Style {
        match (self, tone) {
            (Self::Plain, Tone::Bad) => Style::new().add_modifier(Modifier::BOLD),
            (Self::Plain, Tone::Good | Tone::Changing) => Style::new(),
            (Self::Plain | Self::Colored, Tone::Quiet) => Style::new().add_modifier(Modifier::DIM),
            (Self::Colored, Tone::Good) => Style::new().green(),
            (Self::Colored, Tone::Changing) => Style::new().yellow(),
            (Self::Colored, Tone::Bad) => Style::new().red().bold(),
        }
    }

    /// How what needs no attention looks.
    pub(super) fn quiet(self) -> Style {
        self.style(Tone::Quiet)
    }

    /// How what needs attention looks.
    pub(super) fn alarm(self) -> Style {
        self.style(Tone::Bad)
    }

    fn span(self, tone: Tone, text: impl Into<String>) -> Span<'static> {
        Span::styled(text.into(), self.style(tone))
    }
}

// === impl View ===

impl View {
    /// The status of the coordinator at `url`. Sentences are broken at `width` characters; a table is not.
    pub(super) fn new(
        url: &str,
        status: &StatusObject,
        (palette, width): (Palette, usize),
    ) -> Self {
        let uptime = Uptime(Duration::from_secs_f64(status.uptime_seconds.max(0.0)));
        let mut lines = vec![Line::from(vec![
            format!("switchyard {}", status.version).bold(),
            format!("{INDENT}up {uptime}{INDENT}").into(),
            palette.span(Tone::Quiet, url),
        ])];
        for model in &status.models {
            lines.push(Line::default());
            lines.extend(model_lines(model, palette, width));
        }
        Self { lines }
    }

    /// All lines, from the top.
    pub(super) fn lines(&self) -> &[Line<'static>] {
        &self.lines
    }
}

fn model_lines(model: &ModelStatus, palette: Palette, width: usize) -> Vec<Line<'static>> {
    let tone = match model.phase.as_str() {
        "ready" => Tone::Good,
        "unavailable" | "stopping" => Tone::Bad,
        _ => Tone::Changing,
    };
    let mut lines = vec![
        Line::from(vec![
            model.id.clone().bold(),
            INDENT.into(),
            palette.span(tone, model.phase.replace('_', " ")),
            format!(
                "{INDENT}epoch {}  ranks {}  answering {}  waiting {}",
                model.epoch,
                model.ranks.len(),
                model.running,
                model.waiting
            )
            .into(),
        ]),
        Line::from(format!(
            "{INDENT}answers {}/s  tokens {}/s out, {}/s in  step {}",
            rate(model.answers_per_second),
            rate(model.generated_tokens_per_second),
            rate(model.prompt_tokens_per_second),
            step(model.step_seconds),
        )),
        Line::from(format!("{INDENT}KV cache {}", cache(model))),
    ];
    if let Some(stalled) = model.stalled_seconds.filter(|&seconds| seconds >= 5.0) {
        let text = format!("{INDENT}work, but no token for {stalled:.0} s");
        lines.push(Line::from(palette.span(Tone::Bad, text)));
    }
    if tone != Tone::Good {
        let detail = broken(&model.detail, width).into_iter();
        lines.extend(detail.map(|line| Line::from(palette.span(tone, line))));
    }
    if !model.ranks.is_empty() {
        lines.extend(rank_lines(&model.ranks, palette, width));
    }
    if !model.faults.is_empty() {
        lines.push(Line::from(palette.span(Tone::Quiet, format!("{INDENT}latest faults"))));
        let latest = model.faults.iter().rev().take(FAULTS_SHOWN);
        lines.extend(latest.flat_map(|fault| broken(&told(fault), width)).map(Line::from));
    }
    lines
}

fn rank_lines(ranks: &[RankStatus], palette: Palette, width: usize) -> Vec<Line<'static>> {
    // Half a number would be another number, so columns that do not fit are left out.
    let room = width.saturating_sub(INDENT.len());
    let table = (COLUMNS_MIN..=COLUMNS.len())
        .rev()
        .map(|num_columns| rank_table(ranks, num_columns))
        .find(|table| table.lines().all(|line| line.chars().count() <= room))
        .unwrap_or_else(|| rank_table(ranks, COLUMNS_MIN));
    let tones = [Tone::Quiet].into_iter().chain(ranks.iter().map(tone));
    let lines = table.lines().zip(tones);
    lines.map(|(line, tone)| Line::from(palette.span(tone, format!("{INDENT}{line}")))).collect()
}

/// The ranks with the first so many columns.
fn rank_table(ranks: &[RankStatus], num_columns: usize) -> String {
    let mut table = Table::new(&COLUMNS[..num_columns]);
    for rank in ranks {
        let mut cells = vec![
            rank.rank.to_string(),
            state(rank),
            rank.sequences.to_string(),
            format!("{}/{}", rank.kv_blocks_used, rank.kv_blocks),
            rate(rank.tokens_per_second),
            step(rank.step_seconds),
            rank.address.clone(),
            if rank.device.is_empty() { NONE.to_owned() } else { rank.device.clone() },
            rank.pid.to_string(),
        ];
        cells.truncate(num_columns);
        table.row(cells);
    }
    table.render()
}

fn tone(rank: &RankStatus) -> Tone {
    match rank.state.as_str() {
        "ready" => Tone::Good,
        "lost" => Tone::Bad,
        _ => Tone::Changing,
    }
}

fn state(rank: &RankStatus) -> String {
    if rank.state == "loading" {
        format!("loading {:.0} %", rank.loaded * 100.0)
    } else {
        rank.state.clone()
    }
}

/// How full the cache is, as a bar and in numbers.
fn cache(model: &ModelStatus) -> String {
    let (used, total) = (model.kv_blocks_used, model.kv_blocks);
    if total == 0 {
        return "not there yet".to_owned();
    }
    let share = used as f64 / total as f64;
    // What is not empty shows at least one cell.
    let cells =
        ((share * BAR_CELLS as f64).round() as usize).clamp(usize::from(used > 0), BAR_CELLS);
    let bar = format!("{}{}", "█".repeat(cells), "░".repeat(BAR_CELLS - cells));
    format!("{bar} {:.0} %  {used} of {total} blocks", share * 100.0)
}

fn told(fault: &FaultStatus) -> String {
    let ago = Uptime(Duration::from_secs_f64(fault.seconds_ago.max(0.0)));
    // Most messages name the culprits; one that does not is helped.
    let unnamed = fault.ranks.iter().map(|rank| format!("rank {rank}"));
    let unnamed: Vec<_> = unnamed.filter(|rank| !fault.message.contains(rank)).collect();
    let culprit = unnamed.iter().map(|rank| format!("  {rank}")).collect::<String>();
    let kind = fault.fault.replace('_', " ");
    format!("{ago} ago  epoch {}  {kind}{culprit}: {}", fault.epoch, fault.message)
}

/// A sentence in lines of at most `width` characters, if its words allow that; all but the first further to the right.
fn broken(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = INDENT.to_owned();
    let mut is_empty = true;
    for word in text.split(' ') {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > width {
            lines.push(std::mem::replace(&mut line, INDENT.repeat(2)));
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    lines.push(line);
    lines
}

/// A rate in at most five characters.
fn rate(per_second: f64) -> String {
    match per_second {
        ..0.05 => "0".to_owned(),
        ..10.0 => format!("{per_second:.1}"),
        ..10_000.0 => format!("{per_second:.0}"),
        ..1e7 => format!("{:.0}k", per_second / 1e3),
        _ => format!("{:.0}M", per_second / 1e6),
    }
}

/// The duration of a step.
fn step(seconds: Option<f64>) -> String {
    match seconds {
        None => NONE.to_owned(),
        Some(seconds) if seconds < 0.01 => format!("{:.2} ms", seconds * 1e3),
        Some(seconds) if seconds < 1.0 => format!("{:.0} ms", seconds * 1e3),
        Some(seconds) => format!("{seconds:.1} s"),
    }
}

/// A long duration, in its two largest units.
struct Uptime(Duration);

impl fmt::Display for Uptime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
        let (minutes, seconds) = (seconds / 60 % 60, seconds % 60);
        match (days, hours, minutes) {
            (0, 0, 0) => write!(f, "{seconds} s"),
            (0, 0, _) => write!(f, "{minutes} min {seconds} s"),
            (0, _, _) => write!(f, "{hours} h {minutes} min"),
            _ => write!(f, "{days} d {hours} h"),
        }
    }
}
