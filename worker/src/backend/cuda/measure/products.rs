//! Products with weights.

use switchyard_kernels::cuda::experts::{ExpertMatrices, matmul_experts};
use switchyard_kernels::cuda::matmul::{matmul, matmul_block_diagonal};
use switchyard_kernels::cuda::{Elem, Format, Tensor};

use super::{Bench, Work};

impl Bench<'_> {
    pub(super) fn products(&mut self) {
        let c = &self.shape.config;
        let (hidden, latent) = (c.hidden_size, c.o_groups * c.o_lora_rank);
        let width = c.num_attention_heads * c.head_dim;
        let (act, f32) = (self.gpu.act(), Elem::F32);
        let index = c.index_n_heads * c.index_head_dim;
        for (op, format, shape, elem) in [
            ("wq_a", Format::Fp8, [c.q_lora_rank, hidden], act),
            ("wq_b", Format::Fp8, [width, c.q_lora_rank], act),
            ("wkv", Format::Fp8, [c.head_dim, hidden], act),
            ("wo_b", Format::Fp8, [hidden, latent], act),
            ("indexer wq_b", Format::Fp8, [index, c.q_lora_rank], act),
            ("compressor wkv", Format::Bf16, [2 * c.head_dim, hidden], f32),
            ("gate weight", Format::Bf16, [c.n_routed_experts, hidden], f32),
            ("head", Format::Bf16, [c.vocab_size, hidden], f32),
        ] {
            self.product(op, format, shape, elem);
        }
        self.grouped_product([latent, width / c.o_groups], c.o_groups);
        let inner = c.moe_intermediate_size;
        self.expert_product("experts w1", [inner, hidden]);
        self.expert_product("experts w2", [hidden, inner]);
    }

    fn product(&mut self, op: &str, format: Format, [rows, cols]: [usize; 2], elem: Elem) {
        let mut weights = Vec::new();
        for &num_tokens in &self.options.tokens {
            // Nobody asks for the logits of a whole prompt.
            if op == "head" && num_tokens > 1024 {
                continue;
            }
            let shape = format!("{num_tokens} x [{rows}, {cols}]");
            let Some(name) = self.wanted(op, &shape) else { continue };
            if weights.is_empty() {
                weights = self.rotated(format, [rows, cols]);
            }
            let x = self.activations(num_tokens, cols);
            let mut out = Tensor::new(self.gpu, elem, rows);
            let moved = num_tokens * (cols * x.elem().num_bytes() + rows * elem.num_bytes());
            let work = Work {
                num_bytes: self.bytes_of(format, [rows, cols]).0 + moved,
                num_flops: 2 * num_tokens * rows * cols,
            };
            let gpu = self.gpu;
            self.time(name, work, |run| {
                matmul(gpu, &x, &weights[run % weights.len()], elem, &mut out);
            });
        }
    }

    fn grouped_product(&mut self, [rows, cols]: [usize; 2], num_groups: usize) {
        let mut weights = Vec::new();
        for &num_tokens in &self.options.tokens {
            let shape = format!("{num_tokens} x [{rows}, {cols}] in {num_groups}");
            let Some(name) = self.wanted("wo_a", &shape) else { continue };
            if weights.is_empty() {
                weights = self.rotated(Format::Fp8, [rows, cols]);
            }
            let x = self.activations(num_tokens, num_groups * cols);
            let mut out = Tensor::new(self.gpu, self.gpu.act(), rows);
            let moved = num_tokens * (num_groups * cols + rows) * x.elem().num_bytes();
            let work = Work {
                num_bytes: self.bytes_of(Format::Fp8, [rows, cols]).0 + moved,
                num_flops: 2 * num_tokens * rows * cols,
            };
            let gpu = self.gpu;
            self.time(name, work, |run| {
                let weights = &weights[run % weights.len()];
                matmul_block_diagonal(gpu, &x, weights, num_groups, &mut out);
            });
        }
    }

    fn expert_product(&mut self, op: &str, [rows, cols]: [usize; 2]) {
        let num_slots = self.shape.config.n_routed_experts.div_ceil(self.shape.num_ranks);
        let mut layers = Vec::new();
        for &per_expert in &self.options.rows_per_expert {
            let shape = format!("{num_slots} x {per_expert} x [{rows}, {cols}]");
            let Some(name) = self.wanted(op, &shape) else { continue };
            let (expert_bytes, source) = self.bytes_of(Format::Fp4, [rows, cols]);
            let layer_bytes = num_slots * expert_bytes;
            if layers.is_empty() {
                let num = self.options.rotated_bytes.div_ceil(layer_bytes).max(1);
                let layer = || {
                    let slots = (0..num_slots).map(|_| Some(source.upload(self.gpu))).collect();
                    ExpertMatrices::new(self.gpu, slots)
                };
                layers.extend((0..num).map(|_| layer()));
            }
            let num_rows = num_slots * per_expert;
            let offsets: Vec<_> = (0..=num_slots).map(|slot| (slot * per_expert) as u32).collect();
            let offsets = self.gpu.upload(&offsets);
            let x = self.activations(num_rows, cols);
            let mut out = Tensor::new(self.gpu, self.gpu.act(), rows);
            let work = Work {
                num_bytes: layer_bytes + num_rows * (rows + cols) * x.elem().num_bytes(),
                num_flops: 2 * num_rows * rows * cols,
            };
            let gpu = self.gpu;
            self.time(name, work, |run| {
                matmul_experts(gpu, &x, &layers[run % layers.len()], &offsets, &mut out);
            });
        }
    }
}
