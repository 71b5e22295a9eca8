"""Candidates of the default beside each other, on validation names: the style's share, edges kept, and stray edges

python tools/candidates.py '{}' '{"t_max": 950, "lr": 0.35}' --styles ink,freehand --seeds 0,1

A stray edge is one of the picture where neither the content nor, where there is one, the style's own drawing
of the thing has any within two pixels: scribbles and mazes. Needs the corpus, see nbs/mini/00_data.ipynb.
"""
import argparse, json
import torch, torch.nn.functional as F
from stylekit import stylize
from stylekit.images import image_to_tensor
from stylekit.mini.data import Corpus
from stylekit.measure.judge import Judge, edge_f1, edges, read_probe
from stylekit.mini.judge import look_images
from stylekit.studies.tables import ALIGNED, PROBE_LOOKS, TABLE_STYLES, look_of

def drawn(corpus, names, style, seed, changes, batch=32):
    "The default with changes, for each name"
    images, captions = [corpus['shaded', n] for n in names], [n.replace('-', ' ') for n in names]
    seeds = range(1000*seed, 1000*seed+len(names))
    out = []
    for i in range(0, len(names), batch):
        some = slice(i, i+batch)
        out += stylize(images[some], style, captions[some], seed=list(seeds[some]), **changes)
    return torch.cat([image_to_tensor(r.image) for r in out])

def stray(pictures, *references): # % of the pixels, (N,)
    known = torch.stack([edges(r) for r in references]).any(0).float()
    near = F.max_pool2d(known, 5, 1, 2)
    return 100*(edges(pictures).float()*(1-near)).mean((1,2,3))

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('changes', nargs='+', type=json.loads, help='settings of a candidate, as JSON')
    p.add_argument('--styles', default=','.join(TABLE_STYLES))
    p.add_argument('--seeds', default='0,1')
    p.add_argument('--data', default='data')
    args = p.parse_args()
    corpus, judge = Corpus(f'{args.data}/corpus'), Judge()
    probe = read_probe('nbs/mini/tables/probe.npz', PROBE_LOOKS)
    names = corpus.names('val', ALIGNED)
    content = look_images(corpus, 'shaded', names)
    for style in args.styles.split(','):
        references = [content]
        if set(names) <= set(corpus.names('val', ('shaded', look_of(style)))):
            references.append(look_images(corpus, look_of(style), names))
        for changes in args.changes:
            y = torch.cat([drawn(corpus, names, style, int(s), changes) for s in args.seeds.split(',')])
            n = len(y)//len(names)
            x, *truth = (r.repeat(n, 1, 1, 1) for r in references)
            share = probe.prob(judge.stats(y).numpy())[:, probe.index(style)].mean()
            values = dict(style=share, edges_content=edge_f1(y, x).mean())
            if truth:
                far = judge.perceptual_distance(y, *truth).mean()
                values |= dict(edges_truth=edge_f1(y, *truth).mean(), distance_truth=far)
            values |= dict(stray=stray(y, x, *truth).mean())
            print(style, json.dumps(changes), *(f'{k} {v:.3f}' for k, v in values.items()), flush=True)

if __name__ == '__main__': main()
