//! A completion, whole or in chunks: both have the same form.

use deepseek_recipe::openai::chat_completion::response::{
    ChatCompletionChunk, ChatCompletionChunkGenerator, ChatCompletionFinishReason,
    ChatCompletionOutputTokenUsage, ChatCompletionUsage,
};
use deepseek_recipe::response::{Accumulate, ProtocolResponse};
use deepseek_recipe::stream::{ChunkGenerator, OutputChunk, TokenLogprob};
use indexmap::IndexMap;
use serde::Serialize;

use super::super::protocol::Place;

/// What `object` says of both forms.
const OBJECT: &str = "text_completion";
/// Data of the last event of a complete stream.
const DONE: &str = "[DONE]";

/// A completion or a chunk of one.
#[derive(Debug, Serialize)]
pub struct Completion {
    id: String,
    object: &'static str,
    created: u64,
    model: String,
    system_fingerprint: Option<String>,
    choices: Vec<Choice>,
    /// `None` leaves the field out; `Some(None)` writes null.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<ChatCompletionUsage>>,
}

#[derive(Debug, Serialize)]
struct Choice {
    index: u32,
    text: String,
    logprobs: Option<Logprobs>,
    finish_reason: Option<ChatCompletionFinishReason>,
}

/// Log probabilities in the legacy form: columns by token.
#[derive(Debug, Default, Serialize)]
struct Logprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    /// Token and alternatives, most likely first; null when none were asked for.
    top_logprobs: Option<Vec<IndexMap<String, f32>>>,
    /// Where each token begins in the text, in characters.
    text_offset: Vec<usize>,
}

/// Makes completions of the chunks that a chat's answer would have.
#[derive(Debug)]
pub struct Generator {
    chunks: ChatCompletionChunkGenerator,
    num_top_logprobs: Option<u8>,
    /// Characters of the tokens so far.
    offset: usize,
    /// Tokens of the last piece of text. One that was cut in two comes with all its tokens twice.
    last: Option<std::sync::Arc<[TokenLogprob]>>,
}

// === impl Generator ===

impl Generator {
    pub(super) fn new(chunks: ChatCompletionChunkGenerator, num_top_logprobs: Option<u8>) -> Self {
        Self { chunks, num_top_logprobs, offset: 0, last: None }
    }

    fn logprobs(&mut self, tokens: std::sync::Arc<[TokenLogprob]>) -> Option<Logprobs> {
        if self.last.as_ref().is_some_and(|last| std::sync::Arc::ptr_eq(last, &tokens)) {
            return None;
        }
        let mut logprobs = Logprobs::default();
        for token in tokens.iter() {
            logprobs.tokens.push(token.token.clone());
            logprobs.token_logprobs.push(token.logprob);
            logprobs.text_offset.push(self.offset);
            self.offset += token.token.chars().count();
            if self.num_top_logprobs.is_some_and(|num| num > 0) {
                let own = (token.token.clone(), token.logprob);
                let top = token.top_logprobs.iter().map(|top| (top.token.clone(), top.logprob));
                logprobs.top_logprobs.get_or_insert_default().push(top.chain([own]).collect());
            }
        }
        self.last = Some(tokens);
        Some(logprobs)
    }
}

impl ChunkGenerator for Generator {
    type Chunk = Completion;

    async fn generate(&mut self, mut chunk: OutputChunk) -> Vec<Completion> {
        let is_start = matches!(chunk, OutputChunk::Start { .. });
        let tokens = if let OutputChunk::Content { logprobs, .. } = &mut chunk {
            logprobs.take()
        } else {
            None
        };
        let mut logprobs = tokens.and_then(|tokens| self.logprobs(tokens));
        let chunks = self.chunks.generate(chunk).await;
        // A chat begins with a role, which a completion does not have.
        let chunks = chunks.into_iter().filter(|_| !is_start);
        chunks.map(|chunk| Completion::of(chunk, logprobs.take())).collect()
    }
}

// === impl Completion ===

impl Completion {
    fn of(chunk: ChatCompletionChunk, logprobs: Option<Logprobs>) -> Self {
        let choice = chunk.choices.into_iter().next();
        let choice = choice.map(|choice| Choice {
            index: choice.index,
            text: choice.delta.content.flatten().unwrap_or_default(),
            logprobs,
            finish_reason: choice.finish_reason,
        });
        Self {
            id: chunk.id,
            object: OBJECT,
            created: chunk.created,
            model: chunk.model,
            system_fingerprint: chunk.system_fingerprint,
            choices: choice.into_iter().collect(),
            usage: chunk.usage,
        }
    }

    pub(super) fn place(&mut self, Place { choice: index, last, echo }: Place<'_>) {
        for choice in &mut self.choices {
            choice.index = index;
            choice.text.insert_str(0, echo.unwrap_or_default());
        }
        match &mut self.usage {
            Some(Some(usage)) if last => {
                usage
                    .completion_tokens_details
                    .get_or_insert(ChatCompletionOutputTokenUsage { reasoning_tokens: 0 });
            }
            // Of this choice alone; the last one has the sum.
            Some(Some(_)) => self.usage = None,
            Some(None) | None => {}
        }
    }

    pub(super) fn split_usage(&mut self) -> Option<Self> {
        let usage = self.usage.get_or_insert(None).take()?;
        Some(Self {
            id: self.id.clone(),
            object: OBJECT,
            created: self.created,
            model: self.model.clone(),
            system_fingerprint: self.system_fingerprint.clone(),
            choices: Vec::new(),
            usage: Some(Some(usage)),
        })
    }
}

impl ProtocolResponse for Completion {
    type ChunkGenerator = Generator;

    fn new(id: String, model: String, created: u64, _: usize, _: usize) -> Self {
        Self {
            id,
            object: OBJECT,
            created,
            model,
            system_fingerprint: None,
            choices: Vec::new(),
            usage: None,
        }
    }

    fn sse_done_data() -> Option<String> {
        Some(DONE.to_owned())
    }
}

impl Accumulate<Self> for Completion {
    fn accumulate(&mut self, chunk: Self) {
        self.created = chunk.created;
        self.system_fingerprint = chunk.system_fingerprint;
        if let Some(Some(usage)) = chunk.usage {
            self.usage = Some(Some(usage));
        }
        for delta in chunk.choices {
            match self.choices.iter_mut().find(|choice| choice.index == delta.index) {
                Some(choice) => choice.accumulate(delta),
                None => self.choices.push(delta),
            }
        }
        // Choices begin in any order.
        self.choices.sort_by_key(|choice| choice.index);
    }
}

impl Accumulate<Self> for Choice {
    fn accumulate(&mut self, delta: Self) {
        self.text.push_str(&delta.text);
        self.logprobs.accumulate(delta.logprobs);
        if delta.finish_reason.is_some() {
            self.finish_reason = delta.finish_reason;
        }
    }
}

impl Accumulate<Self> for Logprobs {
    fn accumulate(&mut self, delta: Self) {
        self.tokens.extend(delta.tokens);
        self.token_logprobs.extend(delta.token_logprobs);
        self.top_logprobs.accumulate(delta.top_logprobs);
        self.text_offset.extend(delta.text_offset);
    }
}
