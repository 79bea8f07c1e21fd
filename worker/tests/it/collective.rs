//! One conformance suite for every `AllToAll`: a [`Fabric`] makes the mesh, the checks never know which it is.

use std::sync::Mutex;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use futures::future::try_join_all;
use proptest::prelude::*;
use switchyard_moe::ids::{EpRank, GroupEpoch, StepId};
use switchyard_tls::Role;
use switchyard_worker::collective::tcp::{Group, Listener};
use switchyard_worker::collective::{AllToAll, Direction, Error, Phase, local};

use super::mesh::{addresses, group, listeners, member, runtime, secured_listeners};
use tokio::time::Instant;

type Collective = Box<dyn AllToAll<Buffer = Vec<u8>>>;

/// Long enough that only a deadlock reaches it.
const PATIENT: Duration = Duration::from_secs(60);
/// For checks that wait until it passes.
const HASTY: Duration = Duration::from_millis(150);

/// Makes the collectives of one group, indexed by rank.
type Fabric = fn(world_size: usize, deadline: Duration) -> Vec<Collective>;

fn local_fabric(world_size: usize, deadline: Duration) -> Vec<Collective> {
    local::mesh(world_size, GroupEpoch(1), deadline)
        .into_iter()
        .map(|rank| Box::new(rank) as Collective)
        .collect()
}

fn tcp_fabric(world_size: usize, deadline: Duration) -> Vec<Collective> {
    mesh(deadline, async || listeners(world_size).await)
}

fn tls_fabric(world_size: usize, deadline: Duration) -> Vec<Collective> {
    mesh(deadline, async || {
        let (_authority, security) = member(Role::Worker).await;
        secured_listeners(world_size, &security).await
    })
}

fn mesh(deadline: Duration, listeners: impl AsyncFn() -> Vec<Listener>) -> Vec<Collective> {
    runtime().block_on(async {
        let listeners = listeners().await;
        let peers = addresses(&listeners);
        let joins = listeners.iter().zip(0..).map(|(listener, rank)| {
            let group = group(1, rank, peers.clone());
            listener.join(Group { exchange_deadline: deadline, ..group }, PATIENT)
        });
        let mesh = try_join_all(joins).await.unwrap();
        mesh.into_iter().map(|rank| Box::new(rank) as Collective).collect()
    })
}

macro_rules! conformance {
    ($($name:ident = $fabric:expr),* $(,)?) => {$(
        mod $name {
            use super::*;

            #[test]
            fn rows_arrive_where_they_were_sent() {
                check_uneven_loads($fabric);
            }
            #[test]
            fn a_group_of_one_talks_to_itself() {
                check_group_of_one($fabric);
            }
            #[test]
            fn big_rows_in_both_directions_do_not_deadlock() {
                check_big_rows($fabric);
            }
            #[test]
            fn a_thousand_phases_stay_in_step() {
                check_many_phases($fabric);
            }
            #[test]
            fn everyone_names_the_rank_that_died() {
                check_death($fabric);
            }
            #[test]
            fn everyone_names_the_rank_that_died_while_rows_are_big() {
                check_death_amid_big_rows($fabric);
            }
            #[test]
            fn a_late_rank_is_named_at_the_deadline() {
                check_late($fabric);
            }
            #[test]
            fn an_abort_ends_the_wait_and_peers_name_the_aborted() {
                check_abort($fabric);
            }
            #[test]
            fn a_frame_of_another_phase_is_malformed() {
                check_wrong_phase($fabric);
            }
            #[test]
            fn leaving_after_the_last_phase_hurts_nobody() {
                check_quiet_leave($fabric);
            }
        }
    )*};
}

conformance! {
    over_local = local_fabric,
    over_tcp = tcp_fabric,
    over_tls = tls_fabric,
}

fn phase(index: u64) -> Phase {
    Phase {
        step: StepId(1 + index / 4),
        layer: (index % 4 / 2) as u32,
        direction: if index.is_multiple_of(2) { Direction::Dispatch } else { Direction::Combine },
    }
}

/// What `from` sends to `to` in phase `index`: never the same bytes twice.
fn row(index: u64, from: usize, to: usize, len: usize) -> Vec<u8> {
    // Long and odd, so that bytes that slip by a buffer's length do not go unnoticed.
    const PERIOD: u64 = 4093;
    let seed = index.wrapping_mul(31) + from as u64 * 7 + to as u64;
    let period: Vec<u8> = (0..PERIOD.min(len as u64))
        .map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 3) as u8)
        .collect();
    let mut row = period.repeat(len.div_ceil(PERIOD as usize));
    row.truncate(len);
    row
}

/// Runs `body` on one thread per rank and returns their results in rank order.
fn on_every_rank<T: Send>(
    mesh: Vec<Collective>,
    body: impl Fn(usize, Collective) -> T + Sync,
) -> Vec<T> {
    let body = &body;
    thread::scope(|scope| {
        let ranks: Vec<_> = mesh
            .into_iter()
            .enumerate()
            .map(|(rank, collective)| scope.spawn(move || body(rank, collective)))
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn exchange(
    collective: &mut Collective,
    index: u64,
    outbound: &[Vec<u8>],
) -> Result<Vec<Vec<u8>>, Error> {
    let mut inbound = vec![b"left over from before".to_vec(); collective.world_size()];
    collective.exchange(phase(index), outbound, &mut inbound)?;
    Ok(inbound)
}

fn check_uneven_loads(fabric: Fabric) {
    // Per phase, the length that each rank sends to each; half of them nothing.
    let len = prop_oneof![Just(0_usize), 1..200_usize, 4_000..70_000_usize];
    let loads = (1..=4_usize).prop_flat_map(move |world_size| {
        let one_phase = proptest::collection::vec(len.clone(), world_size * world_size);
        proptest::collection::vec(one_phase, 1..6).prop_map(move |phases| (world_size, phases))
    });
    proptest!(ProptestConfig::with_cases(24), |((world_size, phases) in loads)| {
        on_every_rank(fabric(world_size, PATIENT), |me, mut collective| {
            let mut inbound = vec![Vec::new(); world_size];
            for (index, lens) in phases.iter().enumerate() {
                let index = index as u64;
                let outbound: Vec<_> = (0..world_size)
                    .map(|to| row(index, me, to, lens[me * world_size + to]))
                    .collect();
                collective.exchange(phase(index), &outbound, &mut inbound).unwrap();
                for (from, got) in inbound.iter().enumerate() {
                    let expected = row(index, from, me, lens[from * world_size + me]);
                    assert!(*got == expected, "phase {index}: rank {from} to rank {me}");
                }
            }
        });
    });
}

fn check_group_of_one(fabric: Fabric) {
    let mut collective = fabric(1, PATIENT).remove(0);
    assert_eq!(collective.rank(), EpRank(0));
    assert_eq!(collective.epoch(), GroupEpoch(1));
    let outbound = [b"to myself".to_vec()];
    assert_eq!(exchange(&mut collective, 0, &outbound).unwrap(), outbound);
    assert_eq!(exchange(&mut collective, 1, &[Vec::new()]).unwrap(), [b""]);
}

fn check_big_rows(fabric: Fabric) {
    // Far beyond any socket buffer, in all directions at once, and a neighbour that gets nothing.
    let len = |from: usize, to: usize| if (from, to) == (0, 2) { 0 } else { 24 << 20 };
    on_every_rank(fabric(3, PATIENT), |me, mut collective| {
        for index in 0..2 {
            let outbound: Vec<_> = (0..3).map(|to| row(index, me, to, len(me, to))).collect();
            let inbound = exchange(&mut collective, index, &outbound).unwrap();
            for (from, got) in inbound.iter().enumerate() {
                assert!(*got == row(index, from, me, len(from, me)), "rank {from} to rank {me}");
            }
        }
    });
}

fn check_many_phases(fabric: Fabric) {
    on_every_rank(fabric(3, PATIENT), |me, mut collective| {
        for index in 0..1000 {
            let outbound: Vec<_> = (0..3).map(|to| row(index, me, to, 64)).collect();
            let inbound = exchange(&mut collective, index, &outbound).unwrap();
            for (from, got) in inbound.iter().enumerate() {
                assert_eq!(*got, row(index, from, me, 64));
            }
        }
    });
}

/// Rank 2 of 4 dies before phase 3. Whoever returns first closes its own connections too, yet nobody may name it.
fn check_death_with(fabric: Fabric, len: usize) {
    let errors = on_every_rank(fabric(4, PATIENT), |me, mut collective| {
        let outbound = vec![vec![me as u8; len]; 4];
        // Rank 2 has sent all that phase 2 needs when it dies. Even so, a rank may learn of the death while it still
        // waits for another one's rows of phase 2.
        let num_phases = if me == 2 { 3 } else { 4 };
        (0..num_phases).find_map(|index| exchange(&mut collective, index, &outbound).err())
    });
    for (me, error) in errors.into_iter().enumerate() {
        assert_eq!(error.is_some(), me != 2, "rank {me}: {error:?}");
        let Some(error) = error else { continue };
        let Error::PeerLost { culprit, observer, phase: at } = &error else {
            panic!("rank {me}: {error}");
        };
        assert_eq!((culprit.0, observer.0 as usize, *at), (2, me, phase(3)), "{error}");
        assert!(error.to_string().starts_with("rank 2 stopped before step 1 layer 1 combine"));
    }
}

fn check_death(fabric: Fabric) {
    for _ in 0..20 {
        check_death_with(fabric, 100);
    }
}

fn check_death_amid_big_rows(fabric: Fabric) {
    for _ in 0..3 {
        check_death_with(fabric, 8 << 20);
    }
}

fn check_late(fabric: Fabric) {
    let (done, is_done) = sync_channel::<()>(1);
    let is_done = Mutex::new(is_done);
    let errors = on_every_rank(fabric(2, HASTY), |me, mut collective| {
        let outbound = vec![vec![1; 10]; 2];
        exchange(&mut collective, 0, &outbound).unwrap();
        if me == 1 {
            // Alive, connected and silent until rank 0 has given up.
            is_done.lock().unwrap().recv().unwrap();
            return None;
        }
        let began = Instant::now();
        let error = exchange(&mut collective, 1, &outbound).unwrap_err();
        let waited = began.elapsed();
        done.send(()).unwrap();
        Some((error, waited))
    });
    let (error, waited) = errors.into_iter().flatten().next().unwrap();
    let Error::Timeout { culprit, observer, phase: at, waited_ms } = error else {
        panic!("{error}");
    };
    assert_eq!((culprit, observer, at), (EpRank(1), EpRank(0), phase(1)));
    assert_eq!(waited_ms, HASTY.as_millis() as u64);
    assert!(waited >= HASTY && waited < HASTY * 10, "{waited:?}");
}

fn check_abort(fabric: Fabric) {
    let mesh = fabric(3, PATIENT);
    let handle = mesh[1].abort_handle();
    let (entered, has_entered) = sync_channel::<()>(1);
    let (told, is_told) = sync_channel::<()>(1);
    let (is_told, told) = (Mutex::new(is_told), &told);
    let errors = thread::scope(|scope| {
        scope.spawn(move || {
            has_entered.recv().unwrap();
            handle.abort();
            handle.abort();
        });
        on_every_rank(mesh, |me, mut collective| {
            let outbound = vec![vec![1; 10]; 3];
            match me {
                // Has rank 1's rows, and would wait for rank 2 to its deadline.
                0 => {
                    let error = exchange(&mut collective, 0, &outbound).unwrap_err();
                    told.send(()).unwrap();
                    error
                }
                1 => {
                    entered.send(()).unwrap();
                    let error = exchange(&mut collective, 0, &outbound).unwrap_err();
                    let again = exchange(&mut collective, 1, &outbound).unwrap_err();
                    assert!(matches!(again, Error::Aborted { .. }), "{again}");
                    error
                }
                // Sends nothing before rank 0 has given up.
                _ => {
                    is_told.lock().unwrap().recv().unwrap();
                    let mut phases = 0..2;
                    phases.find_map(|i| exchange(&mut collective, i, &outbound).err()).unwrap()
                }
            }
        })
    });
    assert!(matches!(errors[1], Error::Aborted { .. }), "{}", errors[1]);
    for observer in [0, 2] {
        let error = &errors[observer];
        assert!(matches!(error, Error::PeerLost { culprit: EpRank(1), .. }), "{error}");
    }
}

fn check_wrong_phase(fabric: Fabric) {
    let errors = on_every_rank(fabric(2, PATIENT), |me, mut collective| {
        let outbound = vec![vec![1; 10]; 2];
        // Rank 1 believes to be one phase further.
        exchange(&mut collective, me as u64, &outbound).err()
    });
    assert!(
        errors.iter().flatten().any(|error| {
            matches!(error, Error::Malformed { culprit: EpRank(1), phase: at, .. } if *at == phase(0))
        }),
        "{errors:?}"
    );
}

fn check_quiet_leave(fabric: Fabric) {
    for round in 0..20 {
        on_every_rank(fabric(4, PATIENT), |me, mut collective| {
            let outbound = vec![vec![me as u8; 1 << 10]; 4];
            for index in 0..3 {
                exchange(&mut collective, index, &outbound)
                    .unwrap_or_else(|error| panic!("round {round}, rank {me}: {error}"));
            }
        });
    }
}
