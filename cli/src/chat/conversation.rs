//! The conversation: reads lines, shows answers as they come, keeps the history.

use std::io::{self, BufRead as _, IsTerminal as _, Write};
use std::process::ExitCode;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::client::{Answer, Client, Message};
use crate::terminal;

const HELP: &str = "/clear forgets the conversation, /exit leaves, Ctrl-C stops an answer.";
const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// A conversation with one model.
#[derive(Debug)]
pub(super) struct Conversation {
    client: Client,
    model: String,
    think: Option<bool>,
    system: Option<Message>,
    history: Vec<Message>,
    is_terminal: bool,
}

/// What one answer was and how fast it came.
#[derive(Debug)]
struct Told {
    content: String,
    asked: Instant,
    first: Option<Instant>,
    last: Instant,
    pieces: u32,
    completion_tokens: Option<u32>,
    finish_reason: Option<String>,
}

// === impl Conversation ===

impl Conversation {
    /// A conversation that has not begun.
    pub(super) fn new(
        client: Client,
        model: String,
        system: Option<String>,
        think: Option<bool>,
    ) -> Self {
        let system = system.map(|content| Message { role: "system", content });
        let is_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
        Self { client, model, think, system, history: Vec::new(), is_terminal }
    }

    /// Chats until the input ends. With piped input, a failed turn makes the exit status 1.
    pub(super) async fn run(mut self) -> anyhow::Result<ExitCode> {
        if self.is_terminal {
            terminal::note(format_args!("Chatting with {}. {HELP}", self.model));
        }
        let mut lines = read_lines();
        let mut code = ExitCode::SUCCESS;
        loop {
            self.show_prompt();
            let line = tokio::select! {
                line = lines.recv() => line,
                _ = tokio::signal::ctrl_c() => None,
            };
            match line.as_deref().map(str::trim) {
                None | Some("/exit" | "/quit") => break,
                Some("") => {}
                Some("/clear") => self.history.clear(),
                Some("/help") => terminal::note(HELP),
                Some(command) if command.starts_with('/') => {
                    terminal::note(format_args!("there is no {command}. {HELP}"));
                }
                Some(question) => {
                    if let Err(error) = self.turn(question).await {
                        terminal::error_line(&error);
                        code = ExitCode::FAILURE;
                    }
                }
            }
        }
        // At a terminal the person has seen every error.
        Ok(if self.is_terminal { ExitCode::SUCCESS } else { code })
    }

    fn show_prompt(&self) {
        if self.is_terminal {
            show("\n> ");
        }
    }

    /// Asks one question. A turn without an answer leaves no trace in the history.
    async fn turn(&mut self, question: &str) -> anyhow::Result<()> {
        let mut messages: Vec<_> = self.system.iter().chain(&self.history).cloned().collect();
        let question = Message { role: "user", content: question.to_owned() };
        messages.push(question.clone());
        let asked = Instant::now();
        let mut told = Told::new(asked);
        let outcome = tokio::select! {
            outcome = self.listen(&messages, &mut told) => outcome,
            _ = tokio::signal::ctrl_c() => {
                show(if self.is_terminal { PLAIN } else { "" });
                terminal::line("");
                terminal::note("(stopped)");
                Ok(())
            }
        };
        outcome?;
        if told.first.is_some() {
            self.say_dimmed(&told.summary());
        }
        if !told.content.is_empty() {
            self.history.push(question);
            self.history.push(Message { role: "assistant", content: told.content });
        }
        Ok(())
    }

    async fn listen(&self, messages: &[Message], told: &mut Told) -> anyhow::Result<()> {
        let answer = self.client.ask(&self.model, messages, self.think).await?;
        let shown = self.show_answer(answer, told).await;
        if told.first.is_some() {
            terminal::line("");
        }
        shown
    }

    /// Shows an answer; reasoning is dimmed at a terminal and goes to standard error elsewhere.
    async fn show_answer(&self, mut answer: Answer, told: &mut Told) -> anyhow::Result<()> {
        let mut reasoning = false;
        while let Some(piece) = answer.next().await? {
            if !piece.reasoning.is_empty() {
                told.count();
                reasoning = true;
                if self.is_terminal {
                    show(&format!("{DIM}{}{PLAIN}", piece.reasoning));
                } else {
                    let _ = write!(io::stderr(), "{}", piece.reasoning);
                }
            }
            if !piece.content.is_empty() {
                told.count();
                if std::mem::take(&mut reasoning) {
                    if self.is_terminal { terminal::line("\n") } else { terminal::note("") }
                }
                show(&piece.content);
                told.content.push_str(&piece.content);
            }
            if piece.finish_reason.is_some() {
                told.finish_reason = piece.finish_reason;
            }
            told.completion_tokens = piece.completion_tokens.or(told.completion_tokens);
        }
        Ok(())
    }

    fn say_dimmed(&self, text: &str) {
        if self.is_terminal {
            terminal::note(format_args!("{DIM}{text}{PLAIN}"));
        } else {
            terminal::note(text);
        }
    }
}

// === impl Told ===

impl Told {
    fn new(asked: Instant) -> Self {
        Self {
            content: String::new(),
            asked,
            first: None,
            last: asked,
            pieces: 0,
            completion_tokens: None,
            finish_reason: None,
        }
    }

    fn count(&mut self) {
        let now = Instant::now();
        self.first.get_or_insert(now);
        self.last = now;
        self.pieces += 1;
    }

    /// `23 tokens, 152.3 tok/s, first after 34 ms`
    fn summary(&self) -> String {
        let tokens = self.completion_tokens.unwrap_or(self.pieces);
        let first = self.first.unwrap_or(self.last);
        let mut text = format!("[{tokens} tokens");
        let seconds = (self.last - first).as_secs_f64();
        if tokens > 1 && seconds > 0.0 {
            text.push_str(&format!(", {:.1} tok/s", f64::from(tokens - 1) / seconds));
        }
        text.push_str(&format!(", first after {} ms", (first - self.asked).as_millis()));
        if self.finish_reason.as_deref() == Some("length") {
            text.push_str(", cut off at the length limit");
        }
        text.push(']');
        text
    }
}

/// Writes a piece of a line at once.
fn show(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Lines of standard input. A thread reads them, because a read of a terminal cannot be cancelled.
fn read_lines() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            let Ok(line) = line else { return };
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
