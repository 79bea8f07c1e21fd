#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use switchyard_fuzz_checks::schema::Schemas;

static SCHEMAS: LazyLock<Schemas> = LazyLock::new(Schemas::new);

fuzz_target!(|data: &[u8]| SCHEMAS.check(data));
