//! The published models, for those who ask what they would cost without having one.

use super::ModelConfig;

const V4_FLASH: &str = include_str!("v4-flash.json");
const V4_PRO: &str = include_str!("v4-pro.json");

impl ModelConfig {
    /// DeepSeek-V4-Flash: 284 billion parameters, 43 layers of 256 experts.
    #[must_use]
    pub fn v4_flash() -> Self {
        published(V4_FLASH)
    }

    /// DeepSeek-V4-Pro: 1573 billion parameters, 61 layers of 384 experts.
    #[must_use]
    pub fn v4_pro() -> Self {
        published(V4_PRO)
    }

    /// The first `num_layers` layers alone; all, if there are no more.
    #[must_use]
    pub fn first_layers(mut self, num_layers: usize) -> Self {
        self.layers.truncate(num_layers);
        self.num_hidden_layers = self.layers.len();
        self.num_hash_layers = self.num_hash_layers.min(self.num_hidden_layers);
        self
    }
}

#[expect(clippy::expect_used, reason = "the text is part of the program, and a test reads it")]
fn published(text: &str) -> ModelConfig {
    ModelConfig::from_json(text).expect("a published configuration is valid")
}
