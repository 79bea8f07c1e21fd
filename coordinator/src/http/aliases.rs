//! Metrics under the names that another server gives them, beside our own: for gateways, autoscalers and dashboards that
//! know no other names. They are made of the rendered metrics, so they cost nothing until somebody asks.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use switchyard_moe::config::BLOCK_SIZE;

use crate::metric_definitions as names;

#[cfg(test)]
mod tests;

/// Our names and theirs.
const VLLM: [(&str, &str); 10] = [
    (names::SCHEDULER_RUNNING_SEQUENCES, "vllm:num_requests_running"),
    (names::SCHEDULER_WAITING_SEQUENCES, "vllm:num_requests_waiting"),
    (names::SCHEDULER_PREEMPTIONS_TOTAL, "vllm:num_preemptions_total"),
    (names::PROMPT_TOKENS_TOTAL, "vllm:prompt_tokens_total"),
    (names::GENERATION_TOKENS_TOTAL, "vllm:generation_tokens_total"),
    (names::GEN_AI_TIME_TO_FIRST_TOKEN, "vllm:time_to_first_token_seconds"),
    (names::GEN_AI_TIME_PER_OUTPUT_TOKEN, "vllm:time_per_output_token_seconds"),
    (names::GEN_AI_TIME_PER_OUTPUT_TOKEN, "vllm:request_time_per_output_token_seconds"),
    (names::GEN_AI_REQUEST_DURATION, "vllm:e2e_request_latency_seconds"),
    (names::SCHEDULER_QUEUE_DURATION, "vllm:request_queue_time_seconds"),
];
/// What a model is called in their labels.
const MODEL_NAME: &str = "model_name";
/// What the samples of one metric end in.
const SUFFIXES: [&str; 5] = ["", "_bucket", "_sum", "_count", "_created"];

/// Whose names there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aliases {
    /// Those of vLLM that inference gateways read.
    Vllm,
}

/// A sample of the text format.
#[derive(Clone, Copy, Debug)]
struct Sample<'a> {
    name: &'a str,
    /// With their commas, without the braces.
    labels: &'a str,
    value: &'a str,
}

// === impl Aliases ===

impl Aliases {
    /// The rendered metrics, followed by the same under other names.
    #[must_use]
    pub fn append(self, mut rendered: String) -> String {
        let aliases = match self {
            Self::Vllm => vllm(&rendered),
        };
        rendered.push_str(&aliases);
        rendered
    }
}

fn vllm(rendered: &str) -> String {
    let samples: Vec<_> = rendered.lines().filter_map(Sample::parse).collect();
    let mut text = String::new();
    for (ours, theirs) in VLLM {
        let Some(kind) = kind(rendered, ours) else { continue };
        open(&mut text, theirs, kind);
        for sample in &samples {
            let Some(suffix) = sample.name.strip_prefix(ours) else { continue };
            if SUFFIXES.contains(&suffix) {
                let (labels, value) = (sample.renamed(), sample.value);
                // Writing to a string cannot fail.
                let _ = writeln!(text, "{theirs}{suffix}{{{labels}}} {value}");
            }
        }
    }
    caches(&mut text, &samples);
    text
}

/// The state of the KV cache, over all ranks of a model: what they have for one engine.
fn caches(text: &mut String, samples: &[Sample<'_>]) {
    let free = by_model(samples, names::SCHEDULER_FREE_KV_BLOCKS);
    let total = by_model(samples, names::SCHEDULER_KV_BLOCKS);
    open(text, "vllm:kv_cache_usage_perc", "gauge");
    for (model, &total) in &total {
        let free = free.get(model).copied().unwrap_or_default();
        let used = if total > 0.0 { 1.0 - free / total } else { 0.0 };
        let _ = writeln!(text, "vllm:kv_cache_usage_perc{{{MODEL_NAME}=\"{model}\"}} {used}");
    }
    open(text, "vllm:cache_config_info", "gauge");
    for (model, total) in &total {
        let _ = writeln!(
            text,
            "vllm:cache_config_info{{{MODEL_NAME}=\"{model}\",block_size=\"{BLOCK_SIZE}\",num_gpu_blocks=\"{total}\"}} 1"
        );
    }
}

fn by_model<'a>(samples: &[Sample<'a>], name: &str) -> BTreeMap<&'a str, f64> {
    let mut sums = BTreeMap::new();
    for sample in samples.iter().filter(|sample| sample.name == name) {
        if let (Some(model), Ok(value)) = (sample.label(names::MODEL), sample.value.parse::<f64>())
        {
            *sums.entry(model).or_default() += value;
        }
    }
    sums
}

fn open(text: &mut String, name: &str, kind: &str) {
    let _ = writeln!(
        text,
        "\n# HELP {name} Another name of a metric of Switchyard.\n# TYPE {name} {kind}"
    );
}

/// Type of a metric in rendered text, if the metric is there.
fn kind<'a>(rendered: &'a str, name: &str) -> Option<&'a str> {
    rendered
        .lines()
        .find_map(|line| line.strip_prefix("# TYPE ")?.strip_prefix(name)?.strip_prefix(' '))
}

// === impl Sample ===

impl<'a> Sample<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        if line.starts_with('#') {
            return None;
        }
        let (series, value) = line.rsplit_once(' ')?;
        let (name, labels) = match series.split_once('{') {
            Some((name, labels)) => (name, labels.strip_suffix('}')?),
            None => (series, ""),
        };
        Some(Self { name, labels, value })
    }

    /// Labels in the order in which they are written. Ours hold neither commas nor quotes: they are names of our own choice
    /// and ids of models, which have neither.
    fn labels(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let pairs = self.labels.split(',').filter_map(|label| label.split_once('='));
        pairs.map(|(key, value)| (key, value.trim_matches('"')))
    }

    fn label(self, name: &str) -> Option<&'a str> {
        self.labels().find_map(|(key, value)| (key == name).then_some(value))
    }

    /// The labels as they have them.
    fn renamed(self) -> String {
        let labels = self.labels().map(|(key, value)| {
            let is_model = key == names::MODEL || key == names::GEN_AI_REQUEST_MODEL;
            format!("{}=\"{value}\"", if is_model { MODEL_NAME } else { key })
        });
        labels.collect::<Vec<_>>().join(",")
    }
}
