//! Shows how the model groups come up: a bar per rank in a terminal, a line per phase elsewhere.

use std::collections::BTreeMap;

use indicatif::{ProgressBar, ProgressStyle};
use switchyard_coordinator::engine::status::{GroupStatus, Phase};
use tokio::sync::watch;

use super::screen::Screen;

/// Parts of a bar.
const BAR_STEPS: u64 = 1000;

/// Progress of all models.
#[derive(Debug)]
pub(super) struct Progress {
    screen: Screen,
    models: BTreeMap<String, ModelProgress>,
}

#[derive(Debug, Default)]
struct ModelProgress {
    phase: Option<std::mem::Discriminant<Phase>>,
    spinner: Option<ProgressBar>,
    ranks: Vec<ProgressBar>,
}

// === impl Progress ===

impl Progress {
    /// Nothing to show yet.
    pub(super) fn new(screen: Screen) -> Self {
        Self { screen, models: BTreeMap::new() }
    }

    /// Shows where each model stands; returns whether all are ready.
    pub(super) fn show(&mut self, statuses: &[(String, watch::Receiver<GroupStatus>)]) -> bool {
        let mut all_ready = true;
        for (model, status) in statuses {
            let status = status.borrow().clone();
            all_ready &= status.phase == Phase::Ready;
            self.update(model, &status);
        }
        all_ready
    }

    fn update(&mut self, model: &str, status: &GroupStatus) {
        let shown = self.models.entry(model.to_owned()).or_default();
        let phase = std::mem::discriminant(&status.phase);
        let changed = shown.phase.replace(phase) != Some(phase);
        if !self.screen.is_terminal() {
            if changed {
                self.screen.line(format_args!("{model}: {}", headline(&status.phase)));
            }
            return;
        }
        if status.phase == Phase::Ready {
            shown.clear();
        } else if let Phase::Loading { ranks } = &status.phase {
            shown.draw_ranks(&self.screen, model, ranks);
        } else {
            shown.draw_spinner(&self.screen, format!("{model}: {}", headline(&status.phase)));
        }
    }

    /// Takes all bars off the terminal.
    pub(super) fn clear(&mut self) {
        self.models.values_mut().for_each(ModelProgress::clear);
    }
}

/// The phase without figures that change often.
fn headline(phase: &Phase) -> String {
    if let Phase::WaitingForWorkers { .. } = phase {
        return "starting workers".to_owned();
    }
    if let Phase::Loading { ranks } = phase {
        return format!("loading on {} workers", ranks.len());
    }
    phase.to_string()
}

// === impl ModelProgress ===

impl ModelProgress {
    fn draw_ranks(&mut self, screen: &Screen, model: &str, ranks: &[f32]) {
        while self.ranks.len() < ranks.len() {
            let bar = ProgressBar::new(BAR_STEPS).with_style(bar_style());
            let bar = screen.bars().add(bar);
            bar.set_prefix(format!("{model} rank {}", self.ranks.len()));
            self.ranks.push(bar);
        }
        for (bar, fraction) in self.ranks.iter().zip(ranks) {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a fraction of BAR_STEPS, clamped"
            )]
            bar.set_position((f64::from(fraction.clamp(0.0, 1.0)) * 1000.0) as u64);
        }
    }

    fn draw_spinner(&mut self, screen: &Screen, message: String) {
        let spinner = self.spinner.get_or_insert_with(|| {
            let spinner = screen.bars().add(ProgressBar::new_spinner());
            spinner.enable_steady_tick(std::time::Duration::from_millis(100));
            spinner
        });
        spinner.set_message(message);
    }

    fn clear(&mut self) {
        self.ranks.drain(..).chain(self.spinner.take()).for_each(|bar| bar.finish_and_clear());
    }
}

fn bar_style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix:24} {bar:40} {percent:>3} %")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}
