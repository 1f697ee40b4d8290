//! The smallest value of a function of one variable that falls and then rises.
//!
//! The optima here are flat, and the functions smooth but for corners: golden sections find them
//! without derivatives, in a number of steps that is known beforehand.

/// Sections; each makes the bracket 0.618 times as wide, so these leave a billionth.
const SECTIONS: u32 = 60;

/// Where `f` is smallest between `low` and `high`, both above 0, searched by ratio. An infinite value
/// of `f` is merely large.
pub(super) fn minimize(low: f64, high: f64, f: impl Fn(f64) -> f64) -> f64 {
    let golden = (5.0_f64.sqrt() - 1.0) / 2.0;
    let at = |log: f64| f(log.exp());
    let (mut left, mut right) = (low.ln(), high.ln().max(low.ln()));
    let mut inner = right - golden * (right - left);
    let mut outer = left + golden * (right - left);
    let (mut f_inner, mut f_outer) = (at(inner), at(outer));
    for _ in 0..SECTIONS {
        // When both are beyond any number, the smaller interval is the better guess.
        if f_inner <= f_outer {
            right = outer;
            (outer, f_outer) = (inner, f_inner);
            inner = right - golden * (right - left);
            f_inner = at(inner);
        } else {
            left = inner;
            (inner, f_inner) = (outer, f_outer);
            outer = left + golden * (right - left);
            f_outer = at(outer);
        }
    }
    // The ends themselves may be the best.
    let middle = ((left + right) / 2.0).exp().clamp(low, high.max(low));
    [low, high.max(low)].into_iter().fold(
        middle,
        |best, end| if f(end) < f(best) { end } else { best },
    )
}

/// Where `f` is smallest from 1 to `max`: a walk from `start`, in steps that halve.
pub(super) fn minimize_count(start: u64, max: u64, f: impl Fn(u64) -> f64) -> u64 {
    let mut best = start.clamp(1, max);
    let mut value = f(best);
    let mut stride = (best / 2).max(1);
    loop {
        let near = [
            best.saturating_sub(stride).max(1),
            best.saturating_add(stride).min(max),
        ];
        let better = near
            .into_iter()
            .filter(|&there| there != best)
            .map(|there| (there, f(there)))
            .find(|&(_, there)| there < value);
        match better {
            Some((there, lower)) => (best, value) = (there, lower),
            None if stride == 1 => return best,
            None => stride /= 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_smallest_value_is_found_inside_and_at_the_ends() {
        let found = minimize(1e-3, 1e6, |x| (x.ln() - 7.0_f64.ln()).powi(2));
        assert!((found - 7.0).abs() < 1e-6, "{found}");
        assert_eq!(minimize(2.0, 50.0, |x| x), 2.0);
        assert_eq!(minimize(2.0, 50.0, |x| -x), 50.0);
        assert_eq!(
            minimize(3.0, 1.0, |x| x),
            3.0,
            "an empty bracket is its low end"
        );
        assert!(minimize(1.0, 9.0, |_| f64::INFINITY).is_finite());
    }

    #[test]
    fn a_smallest_count_is_found_from_anywhere() {
        for start in [1, 17, 18, 400, 1000] {
            let found = minimize_count(start, 1000, |n| (n as f64 - 18.0).powi(2));
            assert_eq!(found, 18, "from {start}");
        }
        assert_eq!(minimize_count(5, 9, |n| n as f64), 1);
        assert_eq!(minimize_count(5, 9, |n| -(n as f64)), 9);
    }
}
