//! The bytes of `dispatch` and `combine`, little-endian.
//!
//! ```text
//! dispatch: num_rows u32 · num_assignments u32
//!           · num_rows x (assignments of the row u32)
//!           · num_assignments x (slot u32, routing weight f32), row by row, in top-k order within a row
//!           · num_rows x row
//! combine:  num_assignments u32 · num_assignments x row, in the order of the dispatch frame that it answers
//! row:      hidden_size x f32 (exact numerics) or bf16 (official)
//! ```
//! A rank that has nothing to send sends no bytes. A token's row goes once to each rank, however many of its
//! experts are there; expert rows come back one by one, because the sum over experts is the source's.

use half::bf16;

#[cfg(test)]
mod tests;

/// How one number of a row is sent. Either holds its numerics' activations without loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowFormat {
    /// 4 bytes.
    F32,
    /// 2 bytes.
    Bf16,
}

/// A row's use of one expert.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Assignment {
    /// Slot of the expert, counted on its rank.
    pub slot: u32,
    /// Routing weight.
    pub weight: f32,
}

/// What one rank sends to another in `dispatch`; `counts` and `assignments` as in the frame.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outgoing {
    /// Rows of the source's tensor, each once.
    pub rows: Vec<u32>,
    /// Assignments of each row.
    pub counts: Vec<u32>,
    /// All assignments.
    pub assignments: Vec<Assignment>,
}

/// A parsed `dispatch` frame.
#[derive(Clone, Copy, Debug)]
pub struct DispatchFrame<'a> {
    counts: &'a [[u8; 4]],
    assignments: &'a [[u8; 8]],
    rows: &'a [u8],
}

/// A parsed `combine` frame.
#[derive(Clone, Copy, Debug)]
pub struct CombineFrame<'a> {
    rows: &'a [u8],
    row_bytes: usize,
}

// === impl RowFormat ===

impl RowFormat {
    fn num_bytes(self) -> usize {
        match self {
            Self::F32 => size_of::<f32>(),
            Self::Bf16 => size_of::<bf16>(),
        }
    }

    fn write(self, row: &[f32], to: &mut Vec<u8>) {
        match self {
            Self::F32 => to.extend(row.iter().flat_map(|x| x.to_le_bytes())),
            Self::Bf16 => to.extend(row.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes())),
        }
    }

    /// Widens the bytes of rows.
    pub fn read(self, bytes: &[u8], to: &mut [f32]) {
        match self {
            Self::F32 => {
                for (to, from) in to.iter_mut().zip(bytes.as_chunks().0) {
                    *to = f32::from_le_bytes(*from);
                }
            }
            Self::Bf16 => {
                for (to, from) in to.iter_mut().zip(bytes.as_chunks().0) {
                    *to = f32::from_bits(u32::from(u16::from_le_bytes(*from)) << 16);
                }
            }
        }
    }
}

// === impl Outgoing ===

impl Outgoing {
    /// Empties the lists, keeping their memory.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.counts.clear();
        self.assignments.clear();
    }

    /// Adds an assignment of row `row`. Rows come in rising order. Returns the assignment's index in the frame.
    pub fn push(&mut self, row: u32, assignment: Assignment) -> u32 {
        match self.counts.last_mut() {
            Some(count) if self.rows.last() == Some(&row) => *count += 1,
            Some(_) | None => {
                self.rows.push(row);
                self.counts.push(1);
            }
        }
        self.assignments.push(assignment);
        (self.assignments.len() - 1) as u32
    }

    /// Writes the frame into `buffer`, replacing its contents. `x` is `[rows, hidden]`.
    pub fn write(&self, x: &[f32], hidden: usize, format: RowFormat, buffer: &mut Vec<u8>) {
        buffer.clear();
        if self.rows.is_empty() {
            return;
        }
        buffer.extend((self.rows.len() as u32).to_le_bytes());
        buffer.extend((self.assignments.len() as u32).to_le_bytes());
        buffer.extend(self.counts.iter().flat_map(|count| count.to_le_bytes()));
        for assignment in &self.assignments {
            buffer.extend(assignment.slot.to_le_bytes());
            buffer.extend(assignment.weight.to_le_bytes());
        }
        for &row in &self.rows {
            let start = row as usize * hidden;
            format.write(&x[start..start + hidden], buffer);
        }
    }
}

// === impl DispatchFrame ===

impl<'a> DispatchFrame<'a> {
    /// Parses a frame whose rows have `hidden` numbers and whose slots are below `num_slots`.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse(
        frame: &'a [u8],
        (hidden, format): (usize, RowFormat),
        num_slots: usize,
    ) -> Result<Self, String> {
        if frame.is_empty() {
            return Ok(Self { counts: &[], assignments: &[], rows: &[] });
        }
        let Some((header, rest)) = frame.split_first_chunk::<8>() else {
            return Err(format!("{} bytes hold no header", frame.len()));
        };
        let [n0, n1, n2, n3, a0, a1, a2, a3] = *header;
        let num_rows = u32::from_le_bytes([n0, n1, n2, n3]);
        let num_assignments = u32::from_le_bytes([a0, a1, a2, a3]);
        let row_bytes = (hidden * format.num_bytes()) as u128;
        let expected = u128::from(num_rows) * (4 + row_bytes) + u128::from(num_assignments) * 8;
        if rest.len() as u128 != expected {
            return Err(format!(
                "{num_rows} rows with {num_assignments} assignments are {expected} bytes, not {}",
                rest.len()
            ));
        }
        let (counts, rest) = rest.split_at(num_rows as usize * 4);
        let (assignments, rows) = rest.split_at(num_assignments as usize * 8);
        let frame =
            Self { counts: counts.as_chunks().0, assignments: assignments.as_chunks().0, rows };
        frame.check(num_slots)?;
        Ok(frame)
    }

    fn check(&self, num_slots: usize) -> Result<(), String> {
        let counted: u64 = self.counts().map(u64::from).sum();
        if counted != self.assignments.len() as u64 {
            return Err(format!(
                "its rows count {counted} of {} assignments",
                self.assignments.len()
            ));
        }
        match self.assignments().find(|assignment| assignment.slot as usize >= num_slots) {
            Some(Assignment { slot, .. }) => Err(format!("slot {slot} of {num_slots}")),
            None => Ok(()),
        }
    }

    /// Assignments of each row.
    pub fn counts(&self) -> impl Iterator<Item = u32> {
        self.counts.iter().map(|count| u32::from_le_bytes(*count))
    }

    /// All assignments.
    pub fn assignments(&self) -> impl Iterator<Item = Assignment> {
        self.assignments.iter().map(|&[s0, s1, s2, s3, w0, w1, w2, w3]| Assignment {
            slot: u32::from_le_bytes([s0, s1, s2, s3]),
            weight: f32::from_le_bytes([w0, w1, w2, w3]),
        })
    }

    /// Number of rows.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.counts.len()
    }

    /// The rows' bytes, for [`RowFormat::read`].
    #[must_use]
    pub fn rows(&self) -> &'a [u8] {
        self.rows
    }
}

// === impl CombineFrame ===

impl<'a> CombineFrame<'a> {
    /// Writes expert rows `x` `[num_assignments, hidden]` into `buffer`, replacing its contents.
    pub fn write(x: &[f32], hidden: usize, format: RowFormat, buffer: &mut Vec<u8>) {
        buffer.clear();
        if x.is_empty() {
            return;
        }
        buffer.extend(((x.len() / hidden) as u32).to_le_bytes());
        format.write(x, buffer);
    }

    /// Parses the answer to a dispatch frame of `num_assignments`.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse(
        frame: &'a [u8],
        (hidden, format): (usize, RowFormat),
        num_assignments: usize,
    ) -> Result<Self, String> {
        let row_bytes = hidden * format.num_bytes();
        if num_assignments == 0 && frame.is_empty() {
            return Ok(Self { rows: &[], row_bytes });
        }
        let Some((header, rows)) = frame.split_first_chunk() else {
            return Err(format!("{} bytes answer {num_assignments} assignments", frame.len()));
        };
        let answered = u32::from_le_bytes(*header) as usize;
        if answered != num_assignments || rows.len() != num_assignments * row_bytes {
            return Err(format!(
                "{answered} rows in {} bytes answer {num_assignments} assignments of {row_bytes} bytes",
                rows.len()
            ));
        }
        Ok(Self { rows, row_bytes })
    }

    /// The bytes of one row, for [`RowFormat::read`].
    #[must_use]
    pub fn row(&self, index: usize) -> &'a [u8] {
        &self.rows[index * self.row_bytes..(index + 1) * self.row_bytes]
    }
}
