//! Time of one exchange between two ranks, both sending a frame of one size at the same moment. A layer makes two,
//! `dispatch` and `combine`. Peak is the loopback interface or memory; small frames measure the wake-up of a thread.
//!
//! `cargo bench -p switchyard-benches --bench collective [-- FILTER]`
#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::thread;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use futures::future::try_join_all;
use switchyard_moe::ids::{EpRank, GroupEpoch, StepId};
use switchyard_tls::testing::Authority;
use switchyard_tls::{Role, Security, Usage};
use switchyard_worker::collective::tcp::{Group, Listener};
use switchyard_worker::collective::{AllToAll, Direction, Phase, local};

type Collective = Box<dyn AllToAll<Buffer = Vec<u8>>>;

/// A kind of collective, and how to connect two ranks by it.
type Fabric = (&'static str, fn() -> [Collective; 2]);

/// A peer that is late by so much is a defect.
const DEADLINE: Duration = Duration::from_secs(30);
/// Bytes of a frame: one decode row of a small model, to a prefill chunk of a big one.
const FRAME_BYTES: [usize; 5] = [1 << 10, 4 << 10, 16 << 10, 128 << 10, 1 << 20];

fn phase(index: u64) -> Phase {
    let direction = if index.is_multiple_of(2) { Direction::Dispatch } else { Direction::Combine };
    Phase { step: StepId(index / 2), layer: 0, direction }
}

/// A mesh of two over the loopback interface.
fn tcp_pair() -> [Collective; 2] {
    pair_over(async || Security::Plain)
}

/// The same, protected.
fn tls_pair() -> [Collective; 2] {
    let authority = Authority::new();
    let files = authority.member(Role::Worker);
    pair_over(async || Security::open(Some(&files), Usage::Cluster(Role::Worker)).await.unwrap())
}

fn pair_over(security: impl AsyncFnOnce() -> Security) -> [Collective; 2] {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime
        .block_on(async {
            let any = "127.0.0.1:0".parse().unwrap();
            let security = security().await;
            let bind = || Listener::bind(any, &security);
            let listeners = try_join_all([bind(), bind()]).await.unwrap();
            let peers: Vec<_> =
                listeners.iter().map(|listener| listener.local_addr().to_string()).collect();
            let joins = listeners.iter().zip(0..).map(|(listener, rank)| {
                let group = Group {
                    epoch: GroupEpoch(1),
                    rank: EpRank(rank),
                    peers: peers.clone(),
                    fingerprint: [0; 32],
                    exchange_deadline: DEADLINE,
                };
                listener.join(group, DEADLINE)
            });
            let mesh = try_join_all(joins).await.unwrap();
            mesh.into_iter().map(|rank| Box::new(rank) as Collective).collect::<Vec<_>>()
        })
        .try_into()
        .unwrap()
}

fn local_pair() -> [Collective; 2] {
    let mesh = local::mesh(2, GroupEpoch(1), DEADLINE).into_iter();
    mesh.map(|rank| Box::new(rank) as Collective).collect::<Vec<_>>().try_into().unwrap()
}

fn exchange(c: &mut Criterion) {
    let fabrics: [Fabric; 3] = [("tcp", tcp_pair), ("tls", tls_pair), ("local", local_pair)];
    for (name, pair) in fabrics {
        let mut group = c.benchmark_group(format!("collective/{name}"));
        for bytes in FRAME_BYTES {
            group.throughput(Throughput::Bytes(bytes as u64));
            group.bench_function(BenchmarkId::new("exchange", bytes), |bencher| {
                let [mut ours, mut theirs] = pair();
                // The peer answers until this rank goes away.
                let peer = thread::spawn(move || {
                    let (outbound, mut inbound) = buffers(bytes);
                    let mut phases = (0..).map(phase);
                    while phases.next().is_some_and(|phase| {
                        theirs.exchange(phase, &outbound, &mut inbound).is_ok()
                    }) {}
                });
                let (outbound, mut inbound) = buffers(bytes);
                let mut phases = (0..).map(phase);
                bencher.iter(|| {
                    let phase = phases.next().unwrap();
                    ours.exchange(phase, &outbound, &mut inbound).unwrap();
                });
                drop(ours);
                peer.join().unwrap();
            });
        }
        group.finish();
    }
}

/// One frame for the peer, nothing for oneself.
fn buffers(bytes: usize) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let outbound = vec![vec![1; bytes]; 2];
    (outbound.clone(), outbound)
}

criterion_group!(benches, exchange);
criterion_main!(benches);
