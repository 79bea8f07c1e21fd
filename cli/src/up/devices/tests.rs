use super::*;

#[test]
fn cuda_is_every_gpu_and_a_number_is_one() {
    assert_eq!("cuda".parse::<Devices>().unwrap(), Devices::EachGpu);
    assert_eq!("cpu".parse::<Devices>().unwrap(), Devices::One(Device::Cpu));
    let one = Device::cuda(3);
    assert_eq!("cuda:3".parse::<Devices>().unwrap(), Devices::One(one));
    "gpu".parse::<Devices>().unwrap_err();
}

#[test]
fn each_worker_has_the_next_gpu() {
    let names = |num_workers, num_gpus| -> Vec<_> {
        gpus(num_workers, num_gpus).iter().map(ToString::to_string).collect()
    };
    assert_eq!(names(3, 8), ["cuda:0", "cuda:1", "cuda:2"]);
    assert_eq!(names(3, 2), ["cuda:0", "cuda:1", "cuda:0"]);
    assert_eq!(names(2, 0), ["cuda:0", "cuda:0"]);
}

#[test]
fn processors_need_no_preparation() {
    let devices = Devices::One(Device::Cpu);
    let dir = Path::new("/nowhere");
    let ready = devices.prepare(2, Numerics::Official, dir, &Screen::new()).unwrap();
    assert_eq!(ready, [Device::Cpu, Device::Cpu]);
}
