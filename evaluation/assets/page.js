// mel spectrograms travel as bytes, frames by bands, and are drawn when they come into sight
const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    seen.unobserve(entry.target);
    draw(entry.target);
  }
}, { rootMargin: "400px" });

function draw(canvas) {
  const bytes = Uint8Array.from(atob(canvas.dataset.mel), (c) => c.charCodeAt(0));
  const { width, height } = canvas;
  const pen = canvas.getContext("2d");
  const image = pen.createImageData(width, height);
  for (let frame = 0; frame < width; frame++) {
    for (let band = 0; band < height; band++) {
      const value = bytes[frame * height + band];
      const at = 4 * ((height - 1 - band) * width + frame);
      image.data[at] = Math.min(255, value * 1.5);
      image.data[at + 1] = Math.max(0, value * 1.4 - 90);
      image.data[at + 2] = 60 + value * 0.45;
      image.data[at + 3] = 255;
    }
  }
  pen.putImageData(image, 0, 0);
}

document.querySelectorAll("canvas.mel").forEach((canvas) => seen.observe(canvas));

// one player at a time
document.addEventListener("play", (event) => {
  document.querySelectorAll("audio").forEach((other) => other !== event.target && other.pause());
}, true);
