//! The clock that all processes of a machine share.

use std::io;
use std::time::Duration;

/// CLOCK_MONOTONIC: the time since an arbitrary moment that is the same for every process until the machine starts anew.
#[expect(unsafe_code, reason = "clock_gettime(2)")]
pub fn monotonic() -> io::Result<Duration> {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes a timespec to `now`, which is one.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    Ok(Duration::from_secs(part(now.tv_sec)) + Duration::from_nanos(part(now.tv_nsec)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on() {
        let first = monotonic().unwrap();
        let second = monotonic().unwrap();
        assert!(first > Duration::ZERO && second >= first);
    }
}
