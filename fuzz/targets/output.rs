#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use switchyard_fuzz_checks::output::Outputs;

static OUTPUTS: LazyLock<Outputs> = LazyLock::new(Outputs::new);

fuzz_target!(|data: &[u8]| OUTPUTS.check(data));
