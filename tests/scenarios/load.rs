//! `vmsg frontend blk bench`: what a load of single requests costs the guest.

use crate::scene::Scene;

/// The machine-readable report of a load.
fn load(args: &[&str]) -> serde_json::Value {
    let scene = Scene::new();
    scene.attach("disk").succeeded();
    let mut all = vec![
        "frontend",
        "blk",
        "bench",
        "0",
        "--requests",
        "640",
        "--json",
    ];
    all.extend(args);
    let ended = scene.in_guest(&all);
    serde_json::from_str(&ended.succeeded().stdout).unwrap()
}

#[test]
fn one_read_at_a_time_costs_one_send_each() {
    let report = load(&[]);
    assert_eq!(report["requests"], 640);
    assert_eq!(report["sends_per_request"], 1.0);
}

#[test]
fn no_request_costs_more_than_one_send_in_deep_queues_either() {
    for rw in ["randread", "randwrite"] {
        let report = load(&["--rw", rw, "--iodepth", "32", "--bs", "512"]);
        assert_eq!(report["iodepth"], 32);
        assert!(
            report["sends_per_request"].as_f64().unwrap() <= 1.0,
            "{report}"
        );
    }
}

#[test]
fn a_load_that_does_not_fit_says_what_would() {
    let scene = Scene::new();
    scene.attach("disk").succeeded();
    for (args, why) in [
        (["--bs", "1000"], "no multiple of 512"),
        (["--bs", "1048576"], "the disk has 65536 bytes"),
        (["--iodepth", "65535"], "has room for 501"),
        (["--iodepth", "0"], "is not in 1..=65535"),
        (["--requests", "0"], "is not in 1.."),
    ] {
        let ended = scene.in_guest(&[&["frontend", "blk", "bench", "0"][..], &args].concat());
        assert_eq!(ended.status.code(), Some(2), "{ended:#?}");
        assert!(ended.stderr.contains(why), "{ended:#?}");
    }
}
