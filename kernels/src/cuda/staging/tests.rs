use super::*;

/// A device that finishes a copy only when its buffer is asked for again.
struct Lazy {
    buffers: Vec<Vec<u8>>,
    /// What each buffer has still to copy: bytes, and where to.
    pending: Vec<Option<(usize, Address)>>,
    memory: Vec<u8>,
    /// Buffers in the order in which they were sent.
    sent: Vec<usize>,
    fails_after: usize,
}

impl Lazy {
    fn new(num_buffers: usize, buffer_bytes: usize, memory_bytes: usize) -> Self {
        Self {
            buffers: vec![vec![0; buffer_bytes]; num_buffers],
            pending: vec![None; num_buffers],
            memory: vec![0; memory_bytes],
            sent: Vec::new(),
            fails_after: usize::MAX,
        }
    }

    fn finish(&mut self, index: usize) {
        if let Some((num_bytes, to)) = self.pending[index].take() {
            let to = to as usize;
            self.memory[to..to + num_bytes].copy_from_slice(&self.buffers[index][..num_bytes]);
        }
    }

    fn num_pending(&self) -> usize {
        self.pending.iter().flatten().count()
    }
}

impl Buffers for Lazy {
    fn num_buffers(&self) -> usize {
        self.buffers.len()
    }

    fn buffer_bytes(&self) -> usize {
        self.buffers[0].len()
    }

    fn lend(&mut self, index: usize) -> Result<&mut [u8], Error> {
        self.finish(index);
        Ok(&mut self.buffers[index])
    }

    unsafe fn send(&mut self, index: usize, num_bytes: usize, to: Address) -> Result<(), Error> {
        if self.sent.len() == self.fails_after {
            return Err(Error::Driver { doing: "copying".to_owned(), detail: "gone".to_owned() });
        }
        assert!(self.pending[index].replace((num_bytes, to)).is_none(), "{index} is in flight");
        self.sent.push(index);
        Ok(())
    }
}

fn numbers(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

#[test]
fn everything_arrives_in_its_place() {
    for (num_buffers, buffer_bytes) in [(1, 3), (2, 1), (2, 16), (3, 7), (2, 3 * PIECE_BYTES)] {
        for len in [0, 1, buffer_bytes - 1, buffer_bytes, buffer_bytes + 1, 5 * buffer_bytes + 2] {
            let mut staging = Staging::new(Lazy::new(num_buffers, buffer_bytes, len + 9));
            // SAFETY: the memory is a vector, which checks.
            unsafe { staging.upload(&numbers(len), 9) }.unwrap();
            (0..num_buffers).for_each(|index| staging.buffers.finish(index));
            assert_eq!(staging.buffers.memory[..9], [0; 9]);
            assert!(staging.buffers.memory[9..] == numbers(len), "{num_buffers} x {buffer_bytes}");
        }
    }
}

#[test]
fn one_buffer_is_filled_while_the_others_are_on_their_way() {
    let mut staging = Staging::new(Lazy::new(2, 4, 64));
    for upload in 0..5 {
        // SAFETY: as above.
        unsafe { staging.upload(&numbers(4), upload * 4) }.unwrap();
        // Nothing waited for the copy before: it ends when its buffer is needed.
        assert_eq!(staging.buffers.num_pending(), 2.min(upload as usize + 1));
    }
    assert_eq!(staging.buffers.sent, [0, 1, 0, 1, 0]);
}

#[test]
fn a_copy_that_fails_ends_the_upload() {
    let mut staging = Staging::new(Lazy { fails_after: 2, ..Lazy::new(2, 4, 64) });
    // SAFETY: as above.
    assert!(unsafe { staging.upload(&numbers(64), 0) }.is_err());
    assert_eq!(staging.buffers.sent, [0, 1]);
}
