use super::*;
use std::collections::BTreeMap;

use switchyard_moe::ids::LogicalExpertId;
use tempfile::TempDir;

/// A checkpoint in memory: type, shape and bytes of each tensor.
type Tensors = BTreeMap<String, (&'static str, Vec<usize>, Vec<u8>)>;

const CONFIG: &str = r#"{
    "model_type": "deepseek_v4", "vocab_size": 12, "hidden_size": 32, "num_hidden_layers": 3,
    "num_attention_heads": 2, "head_dim": 16, "qk_rope_head_dim": 4, "q_lora_rank": 8, "o_groups": 2,
    "o_lora_rank": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "num_hash_layers": 1, "routed_scaling_factor": 1.5, "scoring_func": "sqrtsoftplus",
    "swiglu_limit": 10.0, "sliding_window": 8, "index_n_heads": 2, "index_head_dim": 8,
    "index_topk": 4, "compress_ratios": [0, 4, 16], "rope_theta": 10000.0,
    "compress_rope_theta": 160000.0, "max_position_embeddings": 4096, "hc_mult": 2,
    "hc_sinkhorn_iters": 2, "hc_eps": 1e-6, "rms_norm_eps": 1e-6, "bos_token_id": 0, "eos_token_id": 1
}"#;

/// Every tensor of the model: experts FP4, other matrices FP8, the rest BF16.
fn tensors() -> Tensors {
    let config = ModelConfig::from_json(CONFIG).unwrap();
    let mut tensors = Tensors::new();
    layout::for_each_tensor(&config, &mut |Expected { name, shape, kind }| {
        let len: usize = shape.iter().product();
        let blocks: Vec<_> = shape.iter().map(|size| size.div_ceil(FP8_BLOCK)).collect();
        let scale = name.replace(".weight", ".scale");
        match kind {
            Kind::ExpertIds => {
                tensors.insert(name, ("I64", shape, vec![0; len * 8]));
            }
            Kind::Float => {
                tensors.insert(name, ("BF16", shape, vec![0; len * 2]));
            }
            Kind::Quantizable if name.contains(".experts.") => {
                let (rows, cols) = (shape[0], shape[1]);
                tensors.insert(name, ("I8", vec![rows, cols / 2], vec![0; len / 2]));
                let scales = vec![127; len / FP4_BLOCK];
                tensors.insert(scale, ("F8_E8M0", vec![rows, cols / FP4_BLOCK], scales));
            }
            Kind::Quantizable => {
                tensors.insert(name, ("F8_E4M3", shape, vec![0; len]));
                let scales = vec![127; blocks.iter().product()];
                tensors.insert(scale, ("F8_E8M0", blocks, scales));
            }
        }
        Ok(())
    })
    .unwrap();
    tensors
}

/// The bytes of a safetensors file.
fn shard(tensors: &Tensors) -> Vec<u8> {
    let mut entries = Vec::new();
    let mut data = Vec::new();
    for (name, (dtype, shape, bytes)) in tensors {
        let (start, end) = (data.len(), data.len() + bytes.len());
        entries.push(format!(
            "\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data_offsets\":[{start},{end}]}}"
        ));
        data.extend_from_slice(bytes);
    }
    let header = format!("{{\"__metadata__\":{{\"format\":\"pt\"}},{}}}", entries.join(","));
    with_header(&header, &data)
}

fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), CONFIG).unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn folder_of(tensors: &Tensors) -> TempDir {
    folder(&[("model.safetensors", &shard(tensors))])
}

/// Halves by name, so that both shards hold weights of every layer.
fn halves(tensors: &Tensors) -> [Tensors; 2] {
    let mut halves = [Tensors::new(), Tensors::new()];
    for (i, (name, tensor)) in tensors.iter().enumerate() {
        halves[i % 2].insert(name.clone(), tensor.clone());
    }
    halves
}

fn index(halves: &[Tensors; 2]) -> String {
    let place = |file: &'static str, half: &Tensors| {
        half.keys().map(|name| format!("\"{name}\":\"{file}\"")).collect::<Vec<_>>()
    };
    let entries =
        [place("model-1.safetensors", &halves[0]), place("model-2.safetensors", &halves[1])];
    format!("{{\"metadata\":{{}},\"weight_map\":{{{}}}}}", entries.concat().join(","))
}

/// Expects that opening fails and that the message has all of `parts`.
fn check_refused(dir: &TempDir, parts: &[&str]) {
    let error = Checkpoint::open(dir.path()).unwrap_err();
    let mut text = error.to_string();
    if let Some(cause) = std::error::Error::source(&error) {
        text = format!("{text}: {cause}");
    }
    for part in parts {
        assert!(text.contains(part), "{text:?} does not say {part:?}");
    }
}

fn remove(tensors: &mut Tensors, name: &str) {
    tensors.remove(name).unwrap();
}

/// Edits the tensors and expects the message.
fn check_edit(edit: impl FnOnce(&mut Tensors), parts: &[&str]) {
    let mut tensors = tensors();
    edit(&mut tensors);
    check_refused(&folder_of(&tensors), parts);
}

#[test]
fn one_file_many_files_and_an_index_are_the_same_checkpoint() {
    let all = tensors();
    let halves = halves(&all);
    let (first, second) = (shard(&halves[0]), shard(&halves[1]));
    let one = folder_of(&all);
    let two = folder(&[("model-1.safetensors", &first), ("model-2.safetensors", &second)]);
    let index = index(&halves);
    let indexed = folder(&[
        ("model-1.safetensors", &first),
        ("model-2.safetensors", &second),
        ("model.safetensors.index.json", index.as_bytes()),
        ("model-of-someone-else.safetensors", b"which the index does not name"),
    ]);
    let expected = fingerprint(one.path()).unwrap();
    for dir in [&one, &two, &indexed] {
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let matrix = checkpoint.matrix("layers.1.ffn.experts.3.w2.weight").unwrap();
        assert_eq!((matrix.rows, matrix.cols), (32, 32));
        assert!(matches!(matrix.data, MatrixData::Fp4 { scales: [127, ..], .. }));
        assert_eq!(checkpoint.floats("norm.weight").unwrap(), [0.0; 32]);
        assert_eq!(fingerprint(dir.path()).unwrap(), expected);
    }
}

#[test]
fn tensors_of_draft_modules_are_left_alone() {
    let mut all = tensors();
    all.insert("mtp.0.emb.tok_emb.weight".to_owned(), ("F16", vec![3], vec![0; 6]));
    Checkpoint::open(folder_of(&all).path()).unwrap();
}

#[test]
fn weights_may_be_stored_unquantised() {
    let mut all = tensors();
    let rows_and_cols = vec![32, 32];
    for (name, dtype, size) in [("w1", "BF16", 2), ("w2", "F32", 4)] {
        let prefix = format!("layers.0.ffn.experts.1.{name}");
        all.remove(&format!("{prefix}.scale"));
        let bytes = vec![0; 32 * 32 * size];
        all.insert(format!("{prefix}.weight"), (dtype, rows_and_cols.clone(), bytes));
    }
    Checkpoint::open(folder_of(&all).path()).unwrap();
}

#[test]
fn a_faulty_tensor_is_named_with_its_file() {
    let file = "model.safetensors";
    check_edit(
        |t| remove(t, "layers.1.attn.wq_a.weight"),
        &["layers.1.attn.wq_a.weight is missing"],
    );
    check_edit(
        |t| remove(t, "layers.2.ffn.experts.3.w3.scale"),
        &["layers.2.ffn.experts.3.w3.scale is missing"],
    );
    check_edit(
        |t| {
            t.insert("layers.3.attn_sink".to_owned(), ("F32", vec![2], vec![0; 8]));
        },
        &[file, "layers.3.attn_sink does not belong"],
    );
    check_edit(
        |t| {
            t.insert("norm.weight".to_owned(), ("BF16", vec![16], vec![0; 32]));
        },
        &[file, "norm.weight has shape [16]", "[32]"],
    );
    check_edit(
        |t| {
            t.insert("layers.0.attn.wkv.scale".to_owned(), ("F8_E8M0", vec![2, 1], vec![0; 2]));
        },
        &[file, "layers.0.attn.wkv.scale has shape [2, 1]", "[1, 1]"],
    );
    check_edit(
        |t| {
            t.insert("norm.weight".to_owned(), ("F16", vec![32], vec![0; 64]));
        },
        &[file, "norm.weight has dtype F16"],
    );
    check_edit(
        |t| {
            t.insert("head.weight".to_owned(), ("F8_E4M3", vec![12, 32], vec![0; 384]));
        },
        &[file, "head.weight has dtype F8_E4M3"],
    );
    check_edit(
        |t| t.get_mut("layers.0.ffn.gate.tid2eid").unwrap().2[8] = 4,
        &[file, "layers.0.ffn.gate.tid2eid names expert 4 at element 1", "4 experts"],
    );
    check_edit(
        |t| t.get_mut("layers.0.ffn.gate.tid2eid").unwrap().2[7] = 0x80,
        &["names expert -9223372036854775808"],
    );
}

#[test]
fn a_scale_that_is_not_a_number_is_found_when_it_is_read() {
    let mut all = tensors();
    all.get_mut("layers.1.attn.wq_b.scale").unwrap().2[0] = 255;
    let dir = folder_of(&all);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    checkpoint.matrix("layers.1.attn.wq_a.weight").unwrap();
    let error = checkpoint.matrix("layers.1.attn.wq_b.weight").unwrap_err().to_string();
    assert!(
        error.contains("scale 0 of tensor layers.1.attn.wq_b.scale has E8M0 code 255"),
        "{error}"
    );
}

#[test]
fn files_that_are_missing_or_contradict_each_other_are_named() {
    check_refused(&folder(&[]), &["holds no model*.safetensors"]);
    let no_config = tempfile::tempdir().unwrap();
    check_refused(&no_config, &["cannot read", "config.json"]);
    let all = tensors();
    let halves = halves(&all);
    let (first, second) = (shard(&halves[0]), shard(&halves[1]));
    let twice = folder(&[("model-1.safetensors", &first), ("model-2.safetensors", &first)]);
    check_refused(&twice, &["model-1.safetensors and again in", "model-2.safetensors"]);
    let index = index(&halves);
    let swapped = index.replace("model-1.", "model-3.").replace("model-2.", "model-1.");
    for (index, parts) in [
        (index.as_str(), ["index.json places tensor", "model-2.safetensors, which does not exist"]),
        (&swapped, ["index.json places tensor", "which does not"]),
        (&index.replace("model-2.", "../model-2."), ["../model-2.", "is not a plain file name"]),
        ("{\"weight_map\":3}", ["index.json is corrupt", "expected a map"]),
    ] {
        let dir = folder(&[
            ("model-1.safetensors", &first),
            ("model.safetensors.index.json", index.as_bytes()),
        ]);
        check_refused(&dir, &parts);
    }
    let displaced = index.replacen("model-1.", "model-2.", 1);
    let dir = folder(&[
        ("model-1.safetensors", &first),
        ("model-2.safetensors", &second),
        ("model.safetensors.index.json", displaced.as_bytes()),
    ]);
    check_refused(&dir, &["index.json places tensor", "which does not hold it"]);
}

#[test]
fn an_impossible_config_is_named() {
    for (from, to, part) in [
        ("\"hc_mult\": 2", "\"hc_mult\": 0", "hc_mult is 0"),
        ("\"deepseek_v4\"", "\"llama\"", "model_type is \"llama\""),
        ("\"head_dim\": 16,", "", "not a DeepSeek-V4 configuration"),
        ("\"index_head_dim\": 8", "\"index_head_dim\": 12", "power of two"),
    ] {
        let dir = folder_of(&tensors());
        fs::write(dir.path().join("config.json"), CONFIG.replace(from, to)).unwrap();
        check_refused(&dir, &["config.json", part]);
    }
}

#[test]
fn a_corrupt_header_is_refused_with_the_reason() {
    let entry = |offsets: &str| {
        format!(
            "{{\"norm.weight\":{{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":{offsets}}}}}"
        )
    };
    let twice = entry("[0,8]").replace('}', "").replacen('{', "", 1);
    let twice = format!("{{{twice}}},{twice}}}}}");
    let huge = "{\"norm.weight\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296,4],\"data_offsets\":[0,8]}}";
    for (bytes, parts) in [
        (vec![1, 2, 3], ["model.safetensors has a corrupt header", "the file has 3 bytes"]),
        (vec![255; 64], ["corrupt header", "given as 18446744073709551615 bytes"]),
        (with_header("[]", &[]), ["corrupt header", "expected a map"]),
        (
            with_header(&entry("[8,0]"), &[0; 8]),
            ["tensor norm.weight is corrupt", "before they start"],
        ),
        (with_header(&entry("[0,4]"), &[0; 4]), ["tensor norm.weight is corrupt", "in 4 bytes"]),
        (with_header(&entry("[4,12]"), &[0; 12]), ["tensor norm.weight is corrupt", "instead of"]),
        (with_header(&entry("[0,8]"), &[0; 11]), ["corrupt header", "3 bytes at the end"]),
        (with_header(&entry("[0,8]"), &[0; 5]), ["truncated", "tensor norm.weight ends at"]),
        (with_header(&twice, &[0; 8]), ["tensor norm.weight is in", "and again in"]),
        (with_header(huge, &[0; 8]), ["tensor norm.weight is corrupt", "in 8 bytes"]),
    ] {
        check_refused(&folder(&[("model.safetensors", &bytes)]), &parts);
    }
}

#[test]
fn no_truncation_opens_and_no_flipped_bit_panics() {
    let bytes = shard(&tensors());
    let dir = folder(&[("model.safetensors", &bytes)]);
    let file = dir.path().join("model.safetensors");
    let mut lengths: Vec<_> = (0..bytes.len()).step_by(211).collect();
    lengths.push(bytes.len() - 1);
    for len in lengths {
        fs::write(&file, &bytes[..len]).unwrap();
        let error = Checkpoint::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("model.safetensors"), "{len}: {error}");
    }
    let header_len = bytes.len() - tensors().values().map(|(_, _, data)| data.len()).sum::<usize>();
    let mut opened = 0;
    for i in (0..header_len).step_by(13) {
        for flip in [1, 0x10, 0x80] {
            let mut bytes = bytes.clone();
            bytes[i] ^= flip;
            fs::write(&file, &bytes).unwrap();
            opened += usize::from(Checkpoint::open(dir.path()).is_ok());
        }
    }
    // Bits of the ignored metadata, at most.
    assert!(opened < 10, "{opened} corrupt files were opened");
}

#[test]
fn the_fingerprint_tells_checkpoints_apart() {
    let all = tensors();
    let original = fingerprint(folder_of(&all).path()).unwrap();
    let mut edited = all.clone();
    edited.get_mut("embed.weight").unwrap().2[3] = 1;
    assert_ne!(fingerprint(folder_of(&edited).path()).unwrap(), original, "contents");
    let mut edited = all.clone();
    edited.get_mut("norm.weight").unwrap().0 = "I16";
    edited.remove("norm.weight");
    assert_ne!(fingerprint(folder_of(&edited).path()).unwrap(), original, "tensors");
    let dir = folder_of(&all);
    fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    assert_ne!(fingerprint(dir.path()).unwrap(), original, "tokenizer");
    fs::write(dir.path().join("config.json"), CONFIG.replace("1e-6", "1e-5")).unwrap();
    fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    assert_ne!(fingerprint(dir.path()).unwrap(), original, "configuration");
}

#[test]
fn a_rank_reads_its_own_experts_and_all_the_rest() {
    let all = tensors();
    let dir = folder_of(&all);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let placement = Placement::contiguous(3, 4, 2);
    let of_rank = |rank| checkpoint.num_bytes_for(EpRank(rank), &placement);
    let size = |wanted: &dyn Fn(&str) -> bool| -> u64 {
        all.iter().filter(|(name, _)| wanted(name)).map(|(_, t)| t.2.len() as u64).sum()
    };
    let experts = size(&|name| name.contains(".experts."));
    let rest = size(&|name| !name.contains(".experts."));
    assert_eq!(of_rank(0), rest + experts / 2);
    assert_eq!(of_rank(0), of_rank(1));
    assert_eq!(
        layout::routed_expert("layers.2.ffn.experts.31.w1.weight"),
        Some((2, LogicalExpertId(31)))
    );
    assert_eq!(layout::routed_expert("layers.2.ffn.shared_experts.w1.weight"), None);
}
