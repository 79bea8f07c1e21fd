//! Chunks and whole answers as messages.

use deepseek_recipe::openai::chat_completion::response::{
    ChatCompletionChoice, ChatCompletionChunk, ChatCompletionFinishReason, ChatCompletionLogprobs,
    ChatCompletionResponse, ChatCompletionTokenLogprob, ChatCompletionToolCallDelta,
    ChatCompletionUsage,
};
use switchyard_proto::inference::{
    ChatChunk, ChatResponse, Choice, Message, TokenLogprob, ToolCall, ToolCallDelta, TopLogprob,
    Usage,
};

/// A chunk as a message.
#[must_use]
pub fn chunk(chunk: ChatCompletionChunk) -> ChatChunk {
    let mut message = ChatChunk {
        id: chunk.id,
        model: chunk.model,
        created: chunk.created,
        usage: chunk.usage.flatten().map(usage),
        system_fingerprint: chunk.system_fingerprint.unwrap_or_default(),
        ..ChatChunk::default()
    };
    // A chunk of several choices would be several messages; the server makes none.
    if let Some(choice) = chunk.choices.into_iter().next() {
        message.index = choice.index;
        message.content = choice.delta.content.flatten().unwrap_or_default();
        message.reasoning_content = choice.delta.reasoning_content.flatten().unwrap_or_default();
        message.finish_reason = finish_reason(choice.finish_reason);
        message.tool_calls =
            choice.delta.tool_calls.into_iter().flatten().map(tool_call_delta).collect();
        message.logprobs = logprobs(choice.logprobs);
    }
    message
}

/// A whole answer as a message.
#[must_use]
pub fn whole(response: ChatCompletionResponse) -> ChatResponse {
    ChatResponse {
        id: response.id,
        model: response.model,
        created: response.created,
        choices: response.choices.into_iter().map(choice).collect(),
        usage: response.usage.map(usage),
        system_fingerprint: response.system_fingerprint.unwrap_or_default(),
    }
}

fn choice(choice: ChatCompletionChoice) -> Choice {
    let tool_calls = choice.message.tool_calls.into_iter().flatten().map(|call| ToolCall {
        id: call.call.id,
        name: call.call.function.name,
        arguments: call.call.function.arguments,
    });
    let message = Message {
        role: "assistant".to_owned(),
        content: choice.message.content.unwrap_or_default(),
        reasoning_content: choice.message.reasoning_content.unwrap_or_default(),
        tool_calls: tool_calls.collect(),
        ..Message::default()
    };
    Choice {
        index: choice.index,
        message: Some(message),
        finish_reason: finish_reason(choice.finish_reason),
        logprobs: logprobs(choice.logprobs),
    }
}

fn finish_reason(reason: Option<ChatCompletionFinishReason>) -> String {
    let reason = match reason {
        None => "",
        Some(ChatCompletionFinishReason::Stop) => "stop",
        Some(ChatCompletionFinishReason::Length) => "length",
        Some(ChatCompletionFinishReason::ContentFilter) => "content_filter",
        Some(ChatCompletionFinishReason::ToolCalls) => "tool_calls",
    };
    reason.to_owned()
}

fn tool_call_delta(delta: ChatCompletionToolCallDelta) -> ToolCallDelta {
    match delta {
        ChatCompletionToolCallDelta::Start { index, call } => ToolCallDelta {
            index,
            id: call.id,
            name: call.function.name,
            arguments: call.function.arguments,
        },
        ChatCompletionToolCallDelta::Arguments { index, function } => {
            ToolCallDelta { index, arguments: function.arguments, ..ToolCallDelta::default() }
        }
    }
}

fn logprobs(logprobs: Option<ChatCompletionLogprobs>) -> Vec<TokenLogprob> {
    let Some(ChatCompletionLogprobs { content, reasoning_content }) = logprobs else {
        return Vec::new();
    };
    let of = |tokens: Option<Vec<_>>, reasoning| {
        tokens.into_iter().flatten().map(move |token| token_logprob(token, reasoning))
    };
    of(reasoning_content, true).chain(of(content, false)).collect()
}

fn token_logprob(token: ChatCompletionTokenLogprob, reasoning: bool) -> TokenLogprob {
    let top_logprobs = token.top_logprobs.into_iter().map(|top| TopLogprob {
        token: top.token,
        logprob: top.logprob,
        bytes: top.bytes.unwrap_or_default(),
    });
    TokenLogprob {
        token: token.token,
        logprob: token.logprob,
        bytes: token.bytes.unwrap_or_default(),
        top_logprobs: top_logprobs.collect(),
        reasoning,
    }
}

fn usage(usage: ChatCompletionUsage) -> Usage {
    let count = |tokens: usize| u32::try_from(tokens).unwrap_or(u32::MAX);
    Usage {
        prompt_tokens: count(usage.prompt_tokens),
        completion_tokens: count(usage.completion_tokens),
        total_tokens: count(usage.total_tokens),
        cached_tokens: count(usage.prompt_tokens_details.cached_tokens),
        reasoning_tokens: usage
            .completion_tokens_details
            .map_or(0, |details| count(details.reasoning_tokens)),
    }
}
