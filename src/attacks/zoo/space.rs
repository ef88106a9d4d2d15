//! What the coordinates of the search are, and which image belongs to them.

use super::Space;
use crate::attacks::Image;

/// As the white-box attack does: pixels at 0 and 1 stay finite.
const SHRINK: f64 = 0.999_999;

/// Pixels along one axis that each grid line moves, with their weights.
type Lines = Vec<Vec<(usize, f64)>>;

/// The perturbation `m` on a grid, bilinearly enlarged to the image: `x' = image(w + enlarge(m))`.
pub(super) struct Perturbed {
    space: Space,
    /// Height and width of the image, and channels of both.
    h: usize,
    w: usize,
    c: usize,
    rows: Lines,
    cols: Lines,
    original: Vec<f32>,
    /// Coordinates of the original image, one a pixel.
    start: Vec<f64>,
    /// `start + enlarge(m)`.
    here: Vec<f64>,
    /// Height and width of the grid.
    pub grid: [usize; 2],
    /// The perturbation, `[grid h, grid w, c]`.
    pub m: Vec<f64>,
    /// The image here.
    pub pixels: Vec<f32>,
}

/// A coordinate moved: the image, and its squared distance from the original.
pub(super) struct Probe {
    pub pixels: Vec<f32>,
    pub squared: f64,
}

impl Perturbed {
    /// Unperturbed, on this grid.
    pub fn new(space: Space, image: &Image, grid: [usize; 2]) -> Self {
        let start: Vec<f64> = image
            .pixels
            .iter()
            .map(|&x| match space {
                Space::Tanh => (SHRINK * (2.0 * f64::from(x) - 1.0)).atanh(),
                Space::Clipped => f64::from(x),
            })
            .collect();
        let (h, w, c) = (image.shape.h, image.shape.w, image.shape.c);
        let mut perturbed = Perturbed {
            space,
            h,
            w,
            c,
            rows: lines(grid[0], h),
            cols: lines(grid[1], w),
            original: image.pixels.to_vec(),
            here: start.clone(),
            pixels: image.pixels.to_vec(),
            start,
            grid,
            m: vec![0.0; grid[0] * grid[1] * c],
        };
        perturbed.enlarge();
        perturbed
    }

    /// The same perturbation on a finer grid.
    pub fn regrid(&mut self, grid: [usize; 2]) {
        let c = self.c;
        let [old_h, old_w] = self.grid;
        let (rows, cols) = (lines(old_h, grid[0]), lines(old_w, grid[1]));
        let mut m = vec![0.0; grid[0] * grid[1] * c];
        for i in 0..self.m.len() {
            let (row, col, k) = (i / (old_w * c), i / c % old_w, i % c);
            for &(y, a) in &rows[row] {
                for &(x, b) in &cols[col] {
                    m[(y * grid[1] + x) * c + k] += a * b * self.m[i];
                }
            }
        }
        self.m = m;
        self.grid = grid;
        self.rows = lines(grid[0], self.h);
        self.cols = lines(grid[1], self.w);
        self.enlarge();
    }

    /// Whether every pixel has a coordinate of its own.
    fn is_full(&self) -> bool {
        self.grid == [self.h, self.w]
    }

    fn enlarge(&mut self) {
        self.here.copy_from_slice(&self.start);
        for i in 0..self.m.len() {
            let d = self.m[i];
            if d != 0.0 {
                let touched: Vec<_> = self.touched(i).collect();
                for (p, weight) in touched {
                    self.here[p] += weight * d;
                }
            }
        }
        for p in 0..self.here.len() {
            self.pixels[p] = self.pixel(self.here[p]);
        }
    }

    /// Pixels that coordinate `i` moves, with their weights.
    fn touched(&self, i: usize) -> impl Iterator<Item = (usize, f64)> + '_ {
        let [_, grid_w] = self.grid;
        let (row, col, k) = (i / (grid_w * self.c), i / self.c % grid_w, i % self.c);
        self.rows[row].iter().flat_map(move |&(y, a)| {
            let at = move |&(x, b): &(usize, f64)| ((y * self.w + x) * self.c + k, a * b);
            self.cols[col].iter().map(at)
        })
    }

    fn pixel(&self, w: f64) -> f32 {
        match self.space {
            Space::Tanh => (0.5 * (w.tanh() + 1.0)) as f32,
            Space::Clipped => w.clamp(0.0, 1.0) as f32,
        }
    }

    /// `||x' - x||^2`.
    pub fn squared(&self) -> f64 {
        let pairs = self.pixels.iter().zip(&self.original);
        pairs.map(|(&a, &b)| square(a, b)).sum()
    }

    /// The image with coordinate `i` moved by `d`; `squared` is the distance here. A pixel that would
    /// leave the box stays at its border.
    pub fn probe(&self, i: usize, d: f64, squared: f64) -> Probe {
        let mut pixels = self.pixels.clone();
        let mut change = 0.0;
        for (p, weight) in self.touched(i) {
            let new = self.pixel(self.here[p] + weight * d);
            change += square(new, self.original[p]) - square(pixels[p], self.original[p]);
            pixels[p] = new;
        }
        Probe {
            pixels,
            squared: squared + change,
        }
    }

    /// Moves coordinate `i` by `d`; in clipped space with a coordinate a pixel, as far as the box
    /// allows.
    pub fn step(&mut self, i: usize, d: f64) {
        let mut new = self.m[i] + d;
        if self.space == Space::Clipped && self.is_full() {
            new = new.clamp(-self.start[i], 1.0 - self.start[i]);
        }
        let d = new - self.m[i];
        self.m[i] = new;
        let touched: Vec<_> = self.touched(i).collect();
        for (p, weight) in touched {
            self.here[p] += weight * d;
            self.pixels[p] = self.pixel(self.here[p]);
        }
    }

    /// How much each coordinate matters: the largest `|m|` of the block it lies in, an eighth of the
    /// grid wide, in its channel. `None` while nothing is perturbed. A block that is still 0 counts a
    /// hundredth of the largest, or nothing would ever be tried there.
    pub fn importance(&self) -> Option<Vec<f64>> {
        let most = self.m.iter().fold(0.0, |most: f64, m| most.max(m.abs()));
        if most == 0.0 {
            return None;
        }
        let [grid_h, grid_w] = self.grid;
        let side = [(grid_h / 8).max(1), (grid_w / 8).max(1)];
        let blocks_w = grid_w.div_ceil(side[1]);
        let block = |i: usize| {
            let (row, col, k) = (i / (grid_w * self.c), i / self.c % grid_w, i % self.c);
            (row / side[0] * blocks_w + col / side[1]) * self.c + k
        };
        let mut pooled = vec![0.01 * most; grid_h.div_ceil(side[0]) * blocks_w * self.c];
        for (i, m) in self.m.iter().enumerate() {
            let largest = &mut pooled[block(i)];
            *largest = largest.max(m.abs());
        }
        Some((0..self.m.len()).map(|i| pooled[block(i)]).collect())
    }
}

fn square(a: f32, b: f32) -> f64 {
    (f64::from(a) - f64::from(b)).powi(2)
}

/// Bilinear enlargement of `from` lines to `to`, centres of pixels at halves: what each line gives to.
fn lines(from: usize, to: usize) -> Lines {
    let mut lines = vec![Vec::new(); from];
    for y in 0..to {
        let at = ((y as f64 + 0.5) * from as f64 / to as f64 - 0.5).clamp(0.0, (from - 1) as f64);
        let below = at as usize;
        let share = at - below as f64;
        lines[below].push((y, 1.0 - share));
        if share > 0.0 {
            lines[below + 1].push((y, share));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attacks::Goal;
    use crate::tensor::Shape;

    fn image(side: usize, value: f32) -> Image {
        let shape = Shape::new(1, side, side, 2);
        Image {
            pixels: vec![value; shape.len()].into(),
            shape,
            id: 0,
            goal: Goal::Away(0),
            classes: 2,
            seed: 0,
        }
    }

    #[test]
    fn enlargement_by_hand() {
        // two lines to four: 1, 3/4 + 1/4, 1/4 + 3/4, 1
        let two = lines(2, 4);
        assert_eq!(two[0], [(0, 1.0), (1, 0.75), (2, 0.25)]);
        assert_eq!(two[1], [(1, 0.25), (2, 0.75), (3, 1.0)]);
        assert_eq!(lines(3, 3), [[(0, 1.0)], [(1, 1.0)], [(2, 1.0)]]);
    }

    #[test]
    fn steps_and_probes_are_the_whole_enlargement() {
        for space in [Space::Tanh, Space::Clipped] {
            let mut p = Perturbed::new(space, &image(8, 0.4), [3, 3]);
            p.step(5, 0.2);
            p.step(10, -0.1);
            let probe = p.probe(7, 0.05, p.squared());
            p.step(7, 0.05);
            assert_eq!(probe.pixels, p.pixels);
            assert!((probe.squared - p.squared()).abs() < 1e-12);
            let here = p.here.clone();
            p.enlarge();
            for (a, b) in here.iter().zip(&p.here) {
                assert!((a - b).abs() < 1e-12);
            }
            // a constant perturbation is the same on every grid
            let mut flat = Perturbed::new(space, &image(8, 0.4), [2, 4]);
            (0..flat.m.len()).for_each(|i| flat.step(i, 0.3));
            let before = flat.here.clone();
            flat.regrid([8, 8]);
            for (a, b) in before.iter().zip(&flat.here) {
                assert!((a - b).abs() < 1e-12 && (a - flat.start[0] - 0.3).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn importance_is_the_largest_of_a_block_and_channel() {
        let mut p = Perturbed::new(Space::Clipped, &image(16, 0.5), [16, 16]);
        assert!(p.importance().is_none());
        // blocks are 2 x 2: row 2, column 5, channel 1
        p.step((2 * 16 + 5) * 2 + 1, -0.25);
        let importance = p.importance().unwrap();
        for (i, v) in importance.iter().enumerate() {
            let (row, col, k) = (i / 32, i / 2 % 16, i % 2);
            let inside = row / 2 == 1 && col / 2 == 2 && k == 1;
            assert_eq!(*v, if inside { 0.25 } else { 0.0025 });
        }
    }
}
