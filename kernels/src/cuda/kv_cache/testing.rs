//! Sequences cut into steps, and caches read back.

use half::bf16;

use super::*;
use crate::cuda::compressor::{CompressInput, Entries, compress};
use crate::cuda::{Row, testing::cpu};
use crate::quant::{e2m1_to_f32, e4m3_to_f32, fp8_round_trip, ue8m0_to_f32};
use crate::testing::{noise, noise_bytes};

const BLOCK_TOKENS: usize = 128;
pub(crate) const NORM_EPS: f32 = 1e-6;

/// One step of several sequences.
pub(crate) struct Cut {
    pub(crate) step: Step,
    /// Index of each row's token among the tokens of all sequences.
    pub(crate) tokens: Vec<usize>,
}

/// Some sequences in one layer.
pub(crate) struct Case {
    pub(crate) shape: CacheShape,
    /// Tokens of each sequence.
    pub(crate) lens: Vec<usize>,
}

/// A compressor's parameters and inputs.
pub(crate) struct Compressor {
    pub(crate) entries: Entries,
    pub(crate) width: usize,
    pub(crate) kv: Vec<f32>,
    pub(crate) score: Vec<f32>,
    pub(crate) ape: Vec<f32>,
    pub(crate) norm: Vec<f32>,
    pub(crate) inv_freq: Vec<f32>,
}

/// Rows `tokens` of a matrix.
pub(crate) fn gather(data: &[f32], cols: usize, tokens: &[usize]) -> Vec<f32> {
    tokens.iter().flat_map(|&token| &data[token * cols..(token + 1) * cols]).copied().collect()
}

impl Case {
    pub(crate) fn new(
        kind: LayerKind,
        (head_dim, rotary_dim): (usize, usize),
        sliding_window: usize,
        lens: &[usize],
    ) -> Self {
        let longest = lens.iter().copied().max().unwrap_or_default();
        let ratio = kind.ratio().unwrap_or(0);
        let looks_back = if matches!(kind, LayerKind::Csa { .. }) { 2 * ratio } else { ratio };
        let shape = CacheShape {
            kind,
            head_dim,
            rotary_dim,
            index_head_dim: head_dim.next_power_of_two().min(128),
            sliding_window,
            window_rows: sliding_window + 3,
            tail_rows: looks_back + 3,
            num_blocks: longest.div_ceil(BLOCK_TOKENS) * lens.len(),
            entries_per_block: BLOCK_TOKENS.div_ceil(ratio.max(1)),
            num_slots: lens.len(),
        };
        Self { shape, lens: lens.to_vec() }
    }

    /// Tokens of an entry; 1 where there are none.
    pub(crate) fn ratio(&self) -> usize {
        self.shape.kind.ratio().unwrap_or(1)
    }

    /// Tokens of the longest sequence.
    pub(crate) fn longest(&self) -> usize {
        self.lens.iter().copied().max().unwrap_or_default()
    }

    pub(crate) fn num_tokens(&self) -> usize {
        self.lens.iter().sum()
    }

    /// Blocks of a sequence: neither in order nor next to each other.
    pub(crate) fn table(&self, sequence: usize) -> Vec<u32> {
        let per_sequence = self.shape.num_blocks / self.lens.len();
        let block = |b| self.shape.num_blocks - 1 - (b * self.lens.len() + sequence);
        (0..per_sequence).map(|b| block(b) as u32).collect()
    }

    /// Steps with `len` tokens of each sequence.
    pub(crate) fn cut(&self, gpu: &Gpu, len: usize) -> Vec<Cut> {
        let blocks: Vec<u32> = (0..self.lens.len()).flat_map(|s| self.table(s)).collect();
        let longest = self.longest();
        let step = |first: usize| {
            let (mut rows, mut tokens) = (Vec::new(), Vec::new());
            for (sequence, &num_tokens) in self.lens.iter().enumerate() {
                let before: usize = self.lens[..sequence].iter().sum();
                let first_row = rows.len();
                for position in first..(first + len).min(num_tokens) {
                    rows.push(Row {
                        position: position as u32,
                        slot: (self.lens.len() - 1 - sequence) as u32,
                        first_row: first_row as u32,
                        first_position: first as u32,
                        table: (sequence * self.shape.num_blocks / self.lens.len()) as u32,
                    });
                    tokens.push(before + position);
                }
            }
            let mut step = Step::new(gpu);
            step.set(gpu, &rows, &blocks);
            Cut { step, tokens }
        };
        (0..longest).step_by(len).map(step).collect()
    }

    /// A step of nothing but the first sequence's token at `position`.
    pub(crate) fn step_at(&self, gpu: &Gpu, position: usize) -> Step {
        let position = position as u32;
        let row = Row { position, slot: 0, first_row: 0, first_position: position, table: 0 };
        let mut step = Step::new(gpu);
        step.set(gpu, &[row], &self.table(0));
        step
    }

    /// Each token's sequence and position.
    pub(crate) fn places(&self) -> Vec<(usize, usize)> {
        let of = |(s, &len): (usize, &usize)| (0..len).map(move |p| (s, p)).collect::<Vec<_>>();
        self.lens.iter().enumerate().flat_map(of).collect()
    }

    /// Entries of a sequence, read back.
    pub(crate) fn entries(
        &self,
        cache: &Cache,
        entries: Entries,
        sequence: usize,
    ) -> Vec<Vec<f32>> {
        let ratio = self.ratio();
        let table = self.table(sequence);
        let row = |entry: usize| {
            let block = entry * ratio / BLOCK_TOKENS;
            let within = entry - (block * BLOCK_TOKENS).div_ceil(ratio);
            let cell = table[block] as usize * self.shape.entries_per_block + within;
            match entries {
                Entries::Main => cache.read_row(&cache.entries, cell),
                Entries::IndexKeys => cache.read_key(cell),
            }
        };
        (0..self.lens[sequence] / ratio).map(row).collect()
    }

    /// Window rows of all tokens as a variant stores them, `[tokens, head_dim]`.
    pub(crate) fn window_rows(&self, variant: Variant, seed: u32) -> Vec<f32> {
        let dim = self.shape.head_dim;
        let mut kv = noise(seed, self.num_tokens() * dim);
        if variant == Variant::Official {
            for row in kv.chunks_mut(dim) {
                let (plain, rotated) = row.split_at_mut(dim - self.shape.rotary_dim);
                plain.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
                fp8_round_trip(&cpu(), plain, KV_BLOCK);
                rotated.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
            }
        }
        kv
    }

    /// Random parameters and inputs.
    pub(crate) fn compressor(&self, entries: Entries, seed: u32) -> Compressor {
        let ratio = self.ratio();
        let dim = match entries {
            Entries::Main => self.shape.head_dim,
            Entries::IndexKeys => self.shape.index_head_dim,
        };
        let halves = if matches!(self.shape.kind, LayerKind::Csa { .. }) { 2 } else { 1 };
        let width = halves * dim;
        let pairs = self.shape.rotary_dim / 2;
        Compressor {
            entries,
            width,
            kv: noise(seed, self.num_tokens() * width),
            score: noise(seed + 1, self.num_tokens() * width).iter().map(|x| 3.0 * x).collect(),
            ape: noise(seed + 2, ratio * width),
            norm: noise(seed + 3, dim),
            inv_freq: (0..pairs).map(|i| 160_000_f32.powf(-(i as f32) / pairs as f32)).collect(),
        }
    }
}

impl Compressor {
    pub(crate) fn run(&self, gpu: &Gpu, cut: &Cut, cache: &mut Cache) {
        let tensor = |data: &[f32]| {
            Tensor::upload(
                gpu,
                super::super::Elem::F32,
                &gather(data, self.width, &cut.tokens),
                self.width,
            )
        };
        let input = CompressInput {
            entries: self.entries,
            kv: &tensor(&self.kv),
            score: &tensor(&self.score),
            ape: &gpu.upload(&self.ape),
            norm: &gpu.upload(&self.norm),
            norm_eps: NORM_EPS,
            inv_freq: &gpu.upload(&self.inv_freq),
        };
        compress(gpu, &cut.step, &input, cache);
    }
}

impl Rows {
    /// Random numbers below 2 before scaling, in either part of a row.
    pub(crate) fn randomize(&mut self, seed: u32) {
        let data: Vec<u8> = noise_bytes(seed, self.data.len()).iter().map(|b| b & 0xbf).collect();
        self.data.write(0, &data);
        let scales = noise_bytes(seed + 1, self.scales.len());
        let scales: Vec<u8> = scales.iter().map(|b| 125 + b % 4).collect();
        self.scales.write(0, &scales);
    }
}

impl Cache {
    /// A window row or entry as numbers.
    pub(crate) fn read_row(&self, rows: &Rows, cell: usize) -> Vec<f32> {
        let (dim, rotary_dim) = (self.shape.head_dim, self.shape.rotary_dim);
        let data = rows.data.read(cell * rows.row_bytes as usize, rows.row_bytes as usize);
        if rows.scale_bytes == 0 {
            return floats(&data, dim);
        }
        let scales = rows.scales.read(cell * rows.scale_bytes as usize, rows.scale_bytes as usize);
        let num_plain = dim - rotary_dim;
        let plain =
            (0..num_plain).map(|i| e4m3_to_f32(data[i]) * ue8m0_to_f32(scales[i / KV_BLOCK]));
        let rotated = data[num_plain.next_multiple_of(ROW_ALIGNMENT)..].as_chunks::<2>().0;
        let rotated = rotated.iter().take(rotary_dim).map(|b| bf16::from_le_bytes(*b).to_f32());
        plain.chain(rotated).collect()
    }

    /// An indexer key as numbers.
    pub(crate) fn read_key(&self, cell: usize) -> Vec<f32> {
        let (rows, dim) = (&self.index_keys, self.shape.index_head_dim);
        let data = rows.data.read(cell * rows.row_bytes as usize, rows.row_bytes as usize);
        if rows.scale_bytes == 0 {
            return floats(&data, dim);
        }
        let scales = rows.scales.read(cell * rows.scale_bytes as usize, rows.scale_bytes as usize);
        let code = |i: usize| e2m1_to_f32(data[i / 2] >> (i % 2 * 4));
        (0..dim).map(|i| code(i) * ue8m0_to_f32(scales[i / INDEX_KEY_BLOCK])).collect()
    }
}

fn floats(bytes: &[u8], len: usize) -> Vec<f32> {
    bytes.as_chunks().0.iter().take(len).map(|b| f32::from_le_bytes(*b)).collect()
}
