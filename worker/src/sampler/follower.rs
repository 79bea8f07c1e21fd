//! Grammars followed on threads of their own.

use std::fs;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, OnceLock};

use rayon::ThreadPool;
use switchyard_grammar::{Error, Mask, Matcher, Vocabulary};
use switchyard_moe::config::ModelConfig;
use tokio::time::Instant;

use crate::metric_definitions as metric;
use crate::step::Constraint;

/// Threads that follow grammars. One keeps up with thousands of sequences unless their grammars are hostile, and then
/// the other is left.
const NUM_THREADS: usize = 2;
/// Stack of such a thread: grammars are compiled recursively.
const STACK_BYTES: usize = 16 << 20;

/// The threads that follow grammars, and the vocabulary they share.
#[derive(Debug)]
pub(crate) struct Followers {
    tokenizer: Option<PathBuf>,
    vocab_size: usize,
    eos: u32,
    vocabulary: OnceLock<Result<Vocabulary, Error>>,
    threads: OnceLock<Option<ThreadPool>>,
}

/// A sequence's grammar.
#[derive(Debug)]
pub(super) struct Follower {
    state: State,
    /// Tokens of the answer that the matcher has not been given yet.
    unseen: Vec<u32>,
}

/// Where a grammar is.
#[derive(Debug)]
enum State {
    /// It does not hold yet; its first mask is on its way.
    Before { after: u32, mask: Mask, first: Receiver<Followed> },
    /// A thread has it.
    Working(Receiver<Followed>),
    /// The mask of the next token is known.
    Ready(Box<Matcher>, Mask),
    /// It is of no use any more.
    Failed(String),
}

/// A matcher with its next mask.
type Followed = Result<(Box<Matcher>, Mask), Error>;

/// Whether the next token's mask is known.
#[derive(Debug)]
pub(super) enum Readiness {
    Ready,
    Working,
    Failed(String),
}

// === impl Followers ===

impl Followers {
    pub(super) fn new(config: &ModelConfig, tokenizer: Option<PathBuf>) -> Self {
        Self {
            tokenizer,
            vocab_size: config.vocab_size,
            eos: config.eos_token_id,
            vocabulary: OnceLock::new(),
            threads: OnceLock::new(),
        }
    }

    fn vocabulary(&self) -> Result<&Vocabulary, Error> {
        let read = || {
            let refused = |problem: String| Error::Tokenizer(problem);
            let path = self.tokenizer.as_ref();
            let path = path.ok_or_else(|| refused("the model has none".to_owned()))?;
            let json = fs::read(path)
                .map_err(|error| refused(format!("cannot read {}: {error}", path.display())))?;
            Vocabulary::new(&json, self.vocab_size, self.eos)
        };
        self.vocabulary.get_or_init(read).as_ref().map_err(Clone::clone)
    }

    /// Does `work` on one of the threads.
    fn spawn(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Followed + Send + 'static,
    ) -> Receiver<Followed> {
        let (done, result) = sync_channel(1);
        let followers = Arc::clone(self);
        let work = move |done: SyncSender<Followed>| {
            let start = Instant::now();
            let followed = work(&followers);
            metric::mask_found(start.elapsed());
            // The sequence may have ended.
            let _ = done.send(followed);
        };
        match self.threads.get_or_init(threads) {
            Some(threads) => threads.spawn(move || work(done)),
            // The system gives us no thread, so this one must do.
            None => work(done),
        }
        result
    }
}

fn threads() -> Option<ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(NUM_THREADS)
        .stack_size(STACK_BYTES)
        .thread_name(|index| format!("grammar-{index}"))
        .build()
        .ok()
}

// === impl Follower ===

impl Follower {
    /// Begins to compile the grammar.
    pub(super) fn new(constraint: &Constraint, followers: &Arc<Followers>) -> Self {
        let grammar = constraint.grammar.clone();
        let first = followers.spawn(move |followers| {
            let mut matcher = followers.vocabulary()?.compile(&grammar)?;
            let mask = matcher.mask()?;
            Ok((Box::new(matcher), mask))
        });
        let state = match constraint.after {
            Some(after) => {
                let mask = Mask::all_but(followers.vocab_size, &constraint.forbidden_before);
                State::Before { after, mask, first }
            }
            None => State::Working(first),
        };
        Self { state, unseen: Vec::new() }
    }

    /// Takes the next token of the answer.
    pub(super) fn accept(&mut self, token: u32, followers: &Arc<Followers>) {
        self.state = match std::mem::replace(&mut self.state, State::Failed(String::new())) {
            State::Before { after, first, .. } if token == after => State::Working(first),
            State::Ready(matcher, _) => follow(matcher, vec![token], followers),
            State::Working(receiver) => {
                // More than one token without a sample between them: a replay.
                self.unseen.push(token);
                match receiver.try_recv() {
                    Ok(followed) => self.resume(followed, followers),
                    Err(TryRecvError::Empty) => State::Working(receiver),
                    Err(TryRecvError::Disconnected) => gone(),
                }
            }
            waiting @ (State::Before { .. } | State::Failed(_)) => waiting,
        };
    }

    /// Waits for the mask of the next token, up to `deadline`.
    pub(super) fn settle(&mut self, deadline: Instant, followers: &Arc<Followers>) -> Readiness {
        while let State::Working(receiver) = &self.state {
            let left = deadline.saturating_duration_since(Instant::now());
            self.state = match receiver.recv_timeout(left) {
                Ok(followed) => self.resume(followed, followers),
                Err(RecvTimeoutError::Timeout) => return Readiness::Working,
                Err(RecvTimeoutError::Disconnected) => gone(),
            };
        }
        match &self.state {
            State::Failed(problem) => Readiness::Failed(problem.clone()),
            State::Before { .. } | State::Ready(..) | State::Working(_) => Readiness::Ready,
        }
    }

    /// The tokens that may be drawn.
    pub(super) fn allowed(&self) -> Option<&[u32]> {
        match &self.state {
            State::Before { mask, .. } | State::Ready(_, mask) => Some(mask.words()),
            State::Working(_) | State::Failed(_) => None,
        }
    }

    /// Goes on with the tokens that came meanwhile.
    fn resume(&mut self, followed: Followed, followers: &Arc<Followers>) -> State {
        match followed {
            Err(error) => State::Failed(error.to_string()),
            Ok((matcher, mask)) if self.unseen.is_empty() => State::Ready(matcher, mask),
            Ok((matcher, _)) => follow(matcher, std::mem::take(&mut self.unseen), followers),
        }
    }
}

/// Gives a matcher its next tokens.
fn follow(mut matcher: Box<Matcher>, tokens: Vec<u32>, followers: &Arc<Followers>) -> State {
    State::Working(followers.spawn(move |_| {
        for token in tokens {
            matcher.accept(token)?;
        }
        let mask = matcher.mask()?;
        Ok((matcher, mask))
    }))
}

/// The thread dropped what it had: it panicked.
fn gone() -> State {
    State::Failed("internal error in the grammar's matcher".to_owned())
}
