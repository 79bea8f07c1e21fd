use switchyard_moe::ids::{BlockId, SequenceId};

/// Why a batch is impossible. Nothing has changed when it is reported.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// More tokens than the rank has room for.
    #[error("the batch has {num_tokens} tokens, this rank computes at most {limit} in a step")]
    TooManyTokens {
        /// Tokens of the batch.
        num_tokens: usize,
        /// The rank's limit.
        limit: usize,
    },
    /// More sequences than there are slots.
    #[error("the batch would bring this rank above its {limit} sequences")]
    TooManySequences {
        /// The rank's limit.
        limit: usize,
    },
    /// Two chunks of one sequence in one batch.
    #[error("the batch has two chunks of sequence {sequence}")]
    TwoChunks {
        /// The sequence.
        sequence: SequenceId,
    },
    /// A chunk goes on with a sequence that is not here.
    #[error(
        "sequence {sequence} is not on this rank, but its chunk starts at position {position}; begin it at 0"
    )]
    UnknownSequence {
        /// The sequence.
        sequence: SequenceId,
        /// Where the chunk starts.
        position: usize,
    },
    /// A chunk does not start where the sequence ends.
    #[error("sequence {sequence} has {expected} tokens, but its chunk starts at position {actual}")]
    PositionGap {
        /// The sequence.
        sequence: SequenceId,
        /// Where the chunk should start.
        expected: usize,
        /// Where it starts.
        actual: usize,
    },
    /// A prefill chunk without tokens.
    #[error("the chunk of sequence {sequence} has no tokens")]
    EmptyChunk {
        /// The sequence.
        sequence: SequenceId,
    },
    /// A token outside the vocabulary.
    #[error("sequence {sequence} has token {token_id}, the vocabulary ends at {vocab_size}")]
    TokenId {
        /// The sequence.
        sequence: SequenceId,
        /// The token.
        token_id: u32,
        /// Tokens of the model.
        vocab_size: usize,
    },
    /// A decode chunk of a sequence that has not sampled.
    #[error("sequence {sequence} has no sampled token to go on from")]
    NoLastSample {
        /// The sequence.
        sequence: SequenceId,
    },
    /// The sequence would outgrow the context.
    #[error("sequence {sequence} would have {end} tokens, this rank holds at most {limit}")]
    TooLong {
        /// The sequence.
        sequence: SequenceId,
        /// Its length after the chunk.
        end: usize,
        /// The rank's limit.
        limit: usize,
    },
    /// Too few or too many blocks.
    #[error(
        "sequence {sequence} would have {num_blocks} blocks, it needs {needed} and may have {most}"
    )]
    BlockCount {
        /// The sequence.
        sequence: SequenceId,
        /// Blocks with the chunk's.
        num_blocks: usize,
        /// Blocks that its tokens need.
        needed: usize,
        /// Blocks of the longest sequence.
        most: usize,
    },
    /// A block that the pool does not have.
    #[error("sequence {sequence} is given block {block}, the pool has {num_blocks}")]
    UnknownBlock {
        /// The sequence.
        sequence: SequenceId,
        /// The block.
        block: BlockId,
        /// Blocks of the pool.
        num_blocks: usize,
    },
    /// A block that is another's.
    #[error("sequence {sequence} is given block {block}, which is in use")]
    BlockInUse {
        /// The sequence.
        sequence: SequenceId,
        /// The block.
        block: BlockId,
    },
    /// The chunk that begins a sequence does not say what it is.
    #[error("sequence {sequence} begins without a start")]
    NoStart {
        /// The sequence.
        sequence: SequenceId,
    },
    /// A chunk says again what its sequence is.
    #[error("sequence {sequence} has a second start, at position {position}")]
    LateStart {
        /// The sequence.
        sequence: SequenceId,
        /// Where the chunk starts.
        position: u32,
    },
    /// Impossible sampling parameters.
    #[error("sequence {sequence}: {fault}")]
    Sampling {
        /// The sequence.
        sequence: SequenceId,
        /// The parameter, its value and its range.
        fault: String,
    },
}
