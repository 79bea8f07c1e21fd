//! The hosts' part, with devices that exchange through memory in the place of NCCL.

use super::*;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use switchyard_kernels::cuda::{Error as DeviceFault, Variant};

use crate::backend::Backend;
use crate::backend::cuda::CudaBackend;
use crate::collective::local::{self, Local};
use crate::weights::Checkpoint;

const DEADLINE: Duration = Duration::from_secs(20);

/// Bytes under way, at `[from][to]`.
type Hub = Arc<(Mutex<Vec<Vec<Option<Vec<u8>>>>>, Condvar)>;

/// A device whose exchanges go through a [`Hub`].
#[derive(Debug)]
struct Fake {
    hub: Hub,
    rank: usize,
    /// Does not come to exchanges from this one on.
    silent_from: usize,
    num_exchanges: usize,
}

impl DeviceExchange for Fake {
    fn exchange(
        &mut self,
        outbound: &[(&Memory<u8>, usize)],
        inbound: &mut [(&mut Memory<u8>, usize)],
        patience: &Patience<'_>,
    ) -> Result<(), NcclError> {
        self.num_exchanges += 1;
        if self.num_exchanges > self.silent_from {
            let detail = "unplugged".to_owned();
            return Err(DeviceFault::Driver { doing: "ncclSend".to_owned(), detail }.into());
        }
        let (under_way, changed) = &*self.hub;
        let mut under_way = under_way.lock().unwrap();
        for (to, (memory, len)) in outbound.iter().enumerate() {
            under_way[self.rank][to] = Some(memory.read(0, *len));
        }
        changed.notify_all();
        for (from, (memory, len)) in inbound.iter_mut().enumerate() {
            let began = (patience.now)();
            let bytes = loop {
                if let Some(bytes) = under_way[from][self.rank].take() {
                    break bytes;
                }
                if (patience.now)().saturating_sub(began) >= patience.deadline {
                    let deadline = patience.deadline;
                    return Err(NcclError::Deadline { doing: "a fake", deadline });
                }
                under_way = changed.wait_timeout(under_way, Duration::from_millis(5)).unwrap().0;
            };
            assert_eq!(bytes.len(), *len, "both sides agree on the length");
            memory.write(0, &bytes);
        }
        Ok(())
    }
}

fn hub(world_size: usize) -> Hub {
    Arc::new((Mutex::new(vec![vec![None; world_size]; world_size]), Condvar::new()))
}

fn buffers(num: usize) -> Vec<CudaBuffer> {
    let checkpoint = Checkpoint::open(&crate::verify::tests::micro().join("q")).unwrap();
    let gpu = Gpu::emulated(Variant::Exact);
    let backend = CudaBackend::new(&gpu, checkpoint.config(), false);
    (0..num).map(|_| backend.buffer()).collect()
}

fn phase(step: u64) -> Phase {
    Phase { step: StepId(step), layer: 3, direction: Direction::Dispatch }
}

/// What rank `from` sends to rank `to`: uneven, nothing for some.
fn message(from: usize, to: usize, step: u64) -> Vec<u8> {
    vec![(16 * from + to) as u8; (from * 7 + to * 3 + step as usize) % 11 * 100]
}

fn fill(buffers: &mut [CudaBuffer], from: usize, step: u64) {
    for (to, buffer) in buffers.iter_mut().enumerate() {
        let bytes = message(from, to, step);
        buffer.frame_mut().resize(bytes.len());
        buffer.frame_mut().memory_mut().write(0, &bytes);
        buffer.set_capacity(FrameCapacity { rows: from + 1, assignments: to + 2 });
    }
}

/// One rank's exchanges, until the first that fails.
fn run(mut host: Local, mut device: Fake, deadline: Duration, num_steps: u64) -> Result<(), Error> {
    let (rank, world_size) = (device.rank, host.world_size());
    device.rank = rank;
    let mut fabric = Fabric::over(device, &host, deadline);
    let (mut outbound, mut inbound) = (buffers(world_size), buffers(world_size));
    for step in 1..=num_steps {
        fill(&mut outbound, rank, step);
        Nccl::new(&mut host, &mut fabric).exchange(phase(step), &outbound, &mut inbound)?;
        for (from, buffer) in inbound.iter().enumerate() {
            let frame = buffer.frame();
            assert_eq!(frame.memory().read(0, frame.len()), message(from, rank, step));
            let capacity = FrameCapacity { rows: from + 1, assignments: rank + 2 };
            assert_eq!(buffer.capacity(), capacity);
        }
    }
    Ok(())
}

/// Runs a group whose last rank does what `last` says, and returns all results.
fn group(
    world_size: usize,
    deadline: Duration,
    last: impl FnOnce(Local, Fake) -> Result<(), Error> + Send,
) -> Vec<Result<(), Error>> {
    let hub = hub(world_size);
    let fake =
        |rank| Fake { hub: Arc::clone(&hub), rank, silent_from: usize::MAX, num_exchanges: 0 };
    let mut mesh = local::mesh(world_size, GroupEpoch(4), DEADLINE);
    let odd_one = (mesh.pop().unwrap(), fake(world_size - 1));
    thread::scope(|scope| {
        let ranks: Vec<_> = mesh
            .into_iter()
            .enumerate()
            .map(|(rank, host)| {
                let device = fake(rank);
                scope.spawn(move || run(host, device, deadline, 4))
            })
            .collect();
        let last = scope.spawn(move || last(odd_one.0, odd_one.1));
        ranks.into_iter().chain([last]).map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn uneven_frames_arrive_whole_with_their_capacities() {
    for world_size in [1, 2, 3] {
        let results = group(world_size, DEADLINE, |host, device| run(host, device, DEADLINE, 4));
        assert!(results.iter().all(Result::is_ok), "{results:?}");
    }
}

#[test]
fn a_rank_that_dies_between_exchanges_is_named_by_the_mesh() {
    let results = group(3, DEADLINE, |host, device| run(host, device, DEADLINE, 2));
    for (rank, result) in results.into_iter().take(2).enumerate() {
        let expected =
            format!("rank 2 stopped before step 3 layer 3 dispatch; rank {rank} waited for it");
        assert_eq!(result.unwrap_err().to_string(), expected);
    }
}

#[test]
fn a_rank_that_dies_within_an_exchange_is_named_by_the_roll_call() {
    let late = Duration::from_millis(200);
    let results = group(3, late, |mut host, _device| {
        // It agrees on the first exchange, and is gone before its device takes part.
        let notes = vec![vec![0; NOTE_BYTES]; 3];
        let mut theirs = vec![Vec::new(); 3];
        host.exchange(phase(1), &notes, &mut theirs)
    });
    for result in results.into_iter().take(2) {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::PeerLost { culprit: EpRank(2), .. }), "{error}");
    }
}

#[test]
fn a_device_that_fails_while_all_hosts_live_says_what_it_reported() {
    let late = Duration::from_millis(200);
    let results =
        group(2, late, |host, device| run(host, Fake { silent_from: 1, ..device }, late, 4));
    let texts: Vec<_> = results.into_iter().map(|result| result.unwrap_err().to_string()).collect();
    assert!(texts[0].contains("was not done with a fake within 200 ms"), "{texts:?}");
    assert!(texts[1].contains("the GPU failed at ncclSend: unplugged"), "{texts:?}");
}
