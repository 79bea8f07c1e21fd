//! The one terminal of `up`: progress bars at the bottom, lines above them, from whatever writes.

use std::fmt;
use std::io::{self, Write};

use indicatif::{MultiProgress, ProgressDrawTarget};
use tracing_subscriber::fmt::MakeWriter;

/// Cheap to clone; all clones write to the same terminal.
#[derive(Clone, Debug)]
pub(super) struct Screen {
    bars: MultiProgress,
}

/// Collects one log event and writes it above the bars.
#[derive(Debug)]
pub(super) struct LogWriter {
    screen: Screen,
    event: Vec<u8>,
}

// === impl Screen ===

impl Screen {
    /// The process's terminal; without one, bars are not drawn.
    pub(super) fn new() -> Self {
        Self { bars: MultiProgress::with_draw_target(ProgressDrawTarget::stderr()) }
    }

    /// The bars.
    pub(super) fn bars(&self) -> &MultiProgress {
        &self.bars
    }

    /// Whether bars are drawn; otherwise progress is told in lines.
    pub(super) fn is_terminal(&self) -> bool {
        !self.bars.is_hidden()
    }

    /// Writes lines to standard output, above the bars.
    pub(super) fn line(&self, text: impl fmt::Display) {
        self.bars.suspend(|| crate::terminal::line(text));
    }

    /// Writes lines to standard error, above the bars.
    pub(super) fn note(&self, text: impl fmt::Display) {
        self.bars.suspend(|| crate::terminal::note(text));
    }
}

impl<'a> MakeWriter<'a> for Screen {
    type Writer = LogWriter;

    fn make_writer(&'a self) -> LogWriter {
        LogWriter { screen: self.clone(), event: Vec::new() }
    }
}

// === impl LogWriter ===

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.event.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        let event = std::mem::take(&mut self.event);
        // A terminal that is gone is no reason to stop serving.
        let _ = self.screen.bars.suspend(|| io::stderr().lock().write_all(&event));
    }
}
