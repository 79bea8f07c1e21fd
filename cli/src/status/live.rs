//! The status in a terminal: asks every second, draws when something has changed, and restores the terminal however it ends.

use std::pin::pin;
use std::time::Duration;

use crossterm::event::{Event, EventStream, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use futures::StreamExt as _;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::text::Line;
use ratatui::widgets::Paragraph;
use switchyard_coordinator::http::admin::StatusObject;
use tokio::time::Instant;

use super::client::Client;
use super::view::{Palette, View};
use crate::shutdown::Signals;

/// Time between two questions.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// What is on the screen.
#[derive(Debug)]
pub(super) struct Screen {
    url: String,
    palette: Palette,
    status: StatusObject,
    /// Since when there was no answer, and why.
    silence: Option<(Instant, String)>,
    /// Lines that have gone over the top.
    scrolled: usize,
}

/// What a key does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Quit,
    /// By so many lines, down if positive.
    Scroll(isize),
    Nothing,
}

/// Shows the status until the user quits or a signal comes.
///
/// # Errors
/// The terminal cannot be used.
pub(super) async fn run(
    client: &Client,
    status: StatusObject,
    palette: Palette,
) -> anyhow::Result<()> {
    let mut signals = Signals::install()?;
    let mut terminal = ratatui::try_init()?;
    let mut events = EventStream::new();
    let mut screen = Screen::new(client.url(), status, palette);
    let mut poll = pin!(poll(client));
    let result = loop {
        if let Err(error) = terminal.draw(|frame| screen.draw(frame)) {
            break Err(error.into());
        }
        tokio::select! {
            answer = &mut poll => {
                screen.take(answer);
                poll.set(self::poll(client));
            }
            event = events.next() => match event {
                Some(Ok(Event::Key(key))) => match action(key) {
                    Action::Quit => break Ok(()),
                    Action::Scroll(lines) => screen.scroll(lines),
                    Action::Nothing => {}
                },
                // A resize is answered by drawing, as everything is.
                Some(Ok(_)) => {}
                Some(Err(error)) => break Err(error.into()),
                None => break Ok(()),
            },
            () = signals.next() => break Ok(()),
        }
    };
    ratatui::restore();
    result
}

async fn poll(client: &Client) -> anyhow::Result<StatusObject> {
    tokio::time::sleep(POLL_INTERVAL).await;
    client.fetch().await
}

/// What a key does; in a terminal like this, Ctrl-C is a key.
pub(super) fn action(key: KeyEvent) -> Action {
    if key.kind == KeyEventKind::Release {
        return Action::Nothing;
    }
    let interrupts =
        key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c');
    if interrupts || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
        Action::Quit
    } else if matches!(key.code, KeyCode::Up | KeyCode::Char('k')) {
        Action::Scroll(-1)
    } else if matches!(key.code, KeyCode::Down | KeyCode::Char('j')) {
        Action::Scroll(1)
    } else {
        Action::Nothing
    }
}

// === impl Screen ===

impl Screen {
    pub(super) fn new(url: &str, status: StatusObject, palette: Palette) -> Self {
        Self { url: url.to_owned(), palette, status, silence: None, scrolled: 0 }
    }

    /// Takes an answer, or keeps the last one and says that it is old.
    pub(super) fn take(&mut self, answer: anyhow::Result<StatusObject>) {
        match answer {
            Ok(status) => {
                self.status = status;
                self.silence = None;
            }
            Err(error) => {
                let why = crate::terminal::chain(&error);
                let since = self.silence.take().map_or_else(Instant::now, |(since, _)| since);
                self.silence = Some((since, why));
            }
        }
    }

    /// Moves by so many lines, down if positive; no further than there is something to see.
    pub(super) fn scroll(&mut self, lines: isize) {
        self.scrolled = self.scrolled.saturating_add_signed(lines);
    }

    pub(super) fn draw(&mut self, frame: &mut Frame<'_>) {
        let [body, foot] =
            Layout::vertical([Constraint::Fill(1), Constraint::Length(1)]).areas(frame.area());
        let look = (self.palette, usize::from(body.width));
        let view = View::new(&self.url, &self.status, look);
        let height = usize::from(body.height);
        let hidden = view.lines().len().saturating_sub(height);
        self.scrolled = self.scrolled.min(hidden);
        let shown = view.lines().iter().skip(self.scrolled).take(height).cloned();
        frame.render_widget(Paragraph::new(shown.collect::<Vec<_>>()), body);
        frame.render_widget(self.foot(hidden), foot);
    }

    fn foot(&self, hidden: usize) -> Line<'static> {
        let text = match &self.silence {
            Some((since, why)) => {
                return Line::from(format!("OLD by {} s: {why}", since.elapsed().as_secs() + 1))
                    .style(self.palette.alarm());
            }
            None if hidden == 0 => "q quits".to_owned(),
            None => format!("q quits  arrows scroll, {} more lines", hidden - self.scrolled),
        };
        Line::from(text).style(self.palette.quiet())
    }
}
