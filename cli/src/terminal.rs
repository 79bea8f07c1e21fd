//! What the program writes to the terminal. A reader that goes away (a closed pipe) is no error.

use std::fmt;
use std::io::{self, Write};

/// Shorter endings agree by chance.
const REPEATED_LEN_MIN: usize = 8;

/// Writes one line to standard output.
pub(crate) fn line(text: impl fmt::Display) {
    let _ = writeln!(io::stdout().lock(), "{text}");
}

/// Writes one line to standard error.
pub(crate) fn note(text: impl fmt::Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Writes an error and its causes as one message, each cause once.
pub(crate) fn error_line(error: &anyhow::Error) {
    note(format_args!("error: {}", chain(error)));
}

/// An error and its causes in one line: what failed first, then why.
///
/// A cause that only repeats what stands before it, or wraps it in words of its own, is left out.
pub(crate) fn chain(error: &anyhow::Error) -> String {
    let mut message = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        let last = message.rsplit(": ").next().unwrap_or_default();
        if message.contains(&text) || (last.len() >= REPEATED_LEN_MIN && text.ends_with(last)) {
            continue;
        }
        if !message.is_empty() {
            message.push_str(": ");
        }
        message.push_str(&text);
    }
    message
}

#[cfg(test)]
mod tests;
