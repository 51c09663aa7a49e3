//! Several devices.

#[path = "../../examples/two_devices.rs"]
mod two_devices;

#[test]
fn heads_on_two_devices_have_the_bits_of_one() {
    let num_rows = pollster::block_on(two_devices::run()).expect("two devices");
    assert_eq!(num_rows, 16, "every row is compared");
}
