use super::*;
use safetensors::tensor::TensorView;

fn micro(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/micro").join(path)
}

fn args(key: &str, tolerance: f32) -> Args {
    Args {
        exchange: Exchange::Nccl,
        model: micro("q"),
        golden: micro("golden/short.safetensors"),
        key: key.to_owned(),
        numerics: Numerics::Exact,
        device: Device::Cpu,
        kernel_cache: None,
        workers: NonZeroUsize::new(2).unwrap(),
        threads: NonZeroUsize::MIN,
        owner_rank: 1,
        prefill_chunk: NonZeroUsize::new(3),
        decode_from: Some(5),
        tolerance,
    }
}

#[test]
fn the_exit_status_says_whether_the_logits_are_within_the_tolerance() {
    let code = |tolerance| format!("{:?}", run(args("q.exact.prefill_logits", tolerance)).unwrap());
    assert_eq!(code(2e-4), format!("{:?}", ExitCode::SUCCESS));
    assert_eq!(code(0.0), format!("{:?}", ExitCode::FAILURE));
}

#[test]
fn a_golden_file_that_cannot_be_compared_with_is_explained() {
    let check = |key: &str, part: &str| {
        let error = run(args(key, 1.0)).unwrap_err();
        let text = terminal::chain(&error);
        assert!(text.contains("short.safetensors") && text.contains(part), "{text}");
    };
    check("q.exact.logits", "no tensor \"q.exact.logits\"");
    check("ids", "tensor \"ids\" is I64");
    check("exact.L0.hidden", "has shape [7, 4, 128], logits of 7 tokens have [7, 256]");
}

#[test]
fn token_ids_may_be_of_either_width() {
    let bytes: Vec<u8> = [3_i32, 255].iter().flat_map(|id| id.to_le_bytes()).collect();
    let of = |dtype, bytes| {
        let view = TensorView::new(dtype, vec![2], bytes).unwrap();
        let file = safetensors::serialize([("ids", view)], None).unwrap();
        token_ids(&SafeTensors::deserialize(&file).unwrap())
    };
    assert_eq!(of(Dtype::I32, &bytes).unwrap(), [3, 255]);
    let negative: Vec<u8> = [3_i64, -1].iter().flat_map(|id| id.to_le_bytes()).collect();
    assert_eq!(of(Dtype::I64, &negative).unwrap_err().to_string(), "token -1 is no token id");
    assert!(of(Dtype::F32, &bytes).unwrap_err().to_string().contains("F32"));
}
