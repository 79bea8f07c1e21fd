#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use switchyard_fuzz_checks::request::Requests;

static REQUESTS: LazyLock<Requests> = LazyLock::new(Requests::new);

fuzz_target!(|data: &[u8]| REQUESTS.check(data));
