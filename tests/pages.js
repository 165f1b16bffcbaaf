// Shows each page in frames of several widths and writes what a reader would stumble over into the document, as JSON.
const problems = (view, width) => {
  const found = [];
  const page = view.document;
  const wide = page.documentElement.scrollWidth;
  if (wide > width) found.push(`${wide} px wide in a window of ${width}`);
  for (const box of page.querySelectorAll('.scroll'))
    if (width > 1000 && box.scrollWidth > box.clientWidth + 1)
      found.push(`a table is ${box.scrollWidth} px wide in ${box.clientWidth}: ${box.innerText.slice(0, 40)}`);
  if (page.scripts.length > 0) found.push('the page has scripts');
  for (const plot of page.querySelectorAll('svg')) {
    const name = plot.getAttribute('aria-label');
    const edge = plot.getBoundingClientRect();
    const texts = [...plot.querySelectorAll('text')].filter((text) => text.textContent.trim() !== '');
    const boxes = texts.map((text) => [text.textContent.trim(), text.getBoundingClientRect()]);
    for (const [text, box] of boxes)
      if (box.left < edge.left - 1 || box.right > edge.right + 1 || box.top < edge.top - 1 || box.bottom > edge.bottom + 1)
        found.push(`${name}: "${text}" is cut`);
    boxes.forEach(([a, one], i) => boxes.slice(i + 1).forEach(([b, two]) => {
      const x = Math.min(one.right, two.right) - Math.max(one.left, two.left);
      const y = Math.min(one.bottom, two.bottom) - Math.max(one.top, two.top);
      if (x > 1 && y > 0.25 * Math.min(one.height, two.height)) found.push(`${name}: "${a}" covers "${b}"`);
    }));
  }
  return found.concat(faint(view));
};

// Texts whose contrast with what is behind them is below 3.
const faint = (view) => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const luminance = (layers) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const layer of layers) {
      canvas.fillStyle = layer;
      canvas.fillRect(0, 0, 1, 1);
    }
    const linear = [...canvas.getImageData(0, 0, 1, 1).data].map((byte) => {
      const share = byte / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const found = [];
  const seen = new Set();
  for (const element of view.document.body.querySelectorAll('*')) {
    if (![...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim() !== '')) continue;
    const layers = [];
    for (let behind = element; behind; behind = behind.parentElement)
      layers.unshift(view.getComputedStyle(behind).backgroundColor);
    const style = view.getComputedStyle(element);
    const ink = element.ownerSVGElement ? style.fill : style.color;
    const key = [...layers, ink].join();
    if (seen.has(key)) continue;
    seen.add(key);
    const [low, high] = [luminance(layers), luminance([...layers, ink])].sort((a, b) => a - b);
    const contrast = (high + 0.05) / (low + 0.05);
    if (contrast < 3) found.push(`contrast ${contrast.toFixed(1)}: ${element.textContent.slice(0, 40)}`);
  }
  return found;
};

const show = (html, width) => new Promise((done) => {
  const frame = document.createElement('iframe');
  frame.style = `width: ${width}px; height: 2000px; border: 0`;
  frame.onload = () => {
    const view = frame.contentWindow;
    const body = view.getComputedStyle(view.document.body);
    done({ width, problems: problems(view, width), text: view.document.body.innerText, paper: body.backgroundColor });
    frame.remove();
  };
  frame.srcdoc = html;
  document.body.append(frame);
});

(async () => {
  const results = [];
  for (const html of PAGES) for (const width of WIDTHS) results.push(await show(html, width));
  const output = document.createElement('pre');
  output.id = 'results';
  output.textContent = JSON.stringify(results).replace(/[<>&]/g, ' ');
  document.body.append(output);
})();
